"""Images read as features and written by a head of their own: transformers' Janus and ours, the same weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model.released import ROWS, NoTokenizer, layout_of, recipe_of, theirs

from unimm.config.check import ConfigError
from unimm.config.model import FreshVision, PretrainedVision, SeparateHead, SharedSoftmax, SharedTable, VisionFeatures
from unimm.config.tokens import Codebook
from unimm.layout import Layout, LayoutError
from unimm.pictures import to_png
from unimm.sample import Codes, Image, Pixels, SampleError, Text, sample
from unimm.stream.batches import make_batch
from unimm.system import new_model, new_rows
from unimm.text import BytesTokenizer

LAYOUT = layout_of("janus")
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(256, size=(32, 32, 3), dtype=np.uint8) for _ in range(3)]
CODES = [Codes.of_grid(RNG.integers(24, size=(4, 4))) for _ in range(3)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("janus")
    model = theirs("janus")
    model.save_pretrained(folder)
    return model, new_model(recipe_of("janus", folder), LAYOUT, NoTokenizer()).eval(), folder


def batch_of(*samples):
    """One packed row of all samples."""
    rows = [[LAYOUT.render(s) for s in samples]]
    return make_batch(rows, sum(map(len, rows[0])) + 3, LAYOUT.pad_id, LAYOUT.vocab.is_code)


def hidden(model, batch):
    return model.hidden(*(torch.from_numpy(x) for x in (batch.ids, batch.position, batch.document)), batch.lengths,
                        batch.slots)


def asks(picture, question: str, answer: str):
    return sample(Image(CODES[0], seen=to_png(picture)), Text(question), Text(answer, learn=True))


def embedded(model, ids: torch.Tensor) -> torch.Tensor:
    """What transformers' Janus reads at text and at codes that it writes."""
    own = ids >= ROWS
    table = model.get_input_embeddings()(ids.masked_fill(own, 0))
    codes = model.prepare_embeddings_for_image_generation((ids - ROWS).clamp_min(0))
    return torch.where(own[..., None], codes, table)


@torch.no_grad()
def test_text_after_a_picture_has_the_logits_of_its_own_class_packed_with_other_documents(pair):
    model, ours, _ = pair
    samples = [asks(PICTURES[0], "what?", "a dot"), sample(Text("no picture", learn=True)),
               sample(Image(CODES[0], seen=to_png(PICTURES[1])), Text("and"), Image(CODES[1], seen=to_png(PICTURES[2])),
                      Text("differ", learn=True))]
    batch = batch_of(*samples)
    found, start = ours.head((slice(0, ROWS),))(hidden(ours, batch)[0], None), 0
    for one, pictures in zip(samples, (PICTURES[:1], [], PICTURES[1:])):
        ids = torch.from_numpy(LAYOUT.render(one).ids).long()[None]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1 if pictures else None
        expected = model(input_ids=ids, pixel_values=pixels).logits[0]
        assert (found[start:start + ids.shape[1]] - expected).abs().max() <= 1e-4
        start += ids.shape[1]


@torch.no_grad()
def test_written_codes_have_the_logits_of_its_own_head_and_losses_are_apart(pair):
    model, ours, _ = pair
    draws = sample(Text("a dot"), Image(CODES[1], learn=True))
    batch = batch_of(draws, asks(PICTURES[0], "what?", "a dot"))
    sequence = LAYOUT.render(draws)
    ids = torch.from_numpy(sequence.ids).long()
    states = model.model.language_model(inputs_embeds=embedded(model, ids[None])).last_hidden_state[0]
    expected = model.model.generation_head(states)
    found = ours.head((slice(ROWS, ROWS + 24),))(hidden(ours, batch)[0, :len(ids)], None)
    assert (found - expected).abs().max() <= 1e-4
    codes = (ids >= ROWS).nonzero()[:, 0]
    nll = torch.nn.functional.cross_entropy(expected[codes - 1], ids[codes] - ROWS, reduction="sum")
    losses = ours(batch)
    assert float(losses.parts["image"][0]) == pytest.approx(float(nll), rel=1e-5)
    assert int(losses.parts["image"][1]) == 16
    texts = int((batch.learn & ~batch.image).sum())
    assert int(losses.parts["text"][1]) == texts > 5
    ours.image_weight = 0.25
    weighted = ours(batch)
    ours.image_weight = 1.0
    assert float(weighted.total) == pytest.approx(float(losses.parts["text"][0]) + 0.25 * float(nll), rel=1e-5)


def test_every_parameter_has_a_gradient_also_where_a_row_shows_and_draws_nothing(pair):
    """Defect 16: a module skipped on one rank hangs the others."""
    _, ours, _ = pair
    ours.train()
    ours(batch_of(sample(Text("words alone", learn=True)))).total.backward()
    without = {name for name, p in ours.named_parameters() if p.grad is None}
    drawn = [p.grad.abs().sum() for name, p in ours.named_parameters()
             if name.startswith(("image_input.", "image_output."))]
    ours.zero_grad()
    ours.eval()
    assert without == set() and not any(drawn)


def test_features_given_in_place_of_pixels_are_what_the_encoder_makes_of_them(pair):
    from unimm.sample import Latents

    _, ours, _ = pair
    with torch.no_grad():
        by_pixels = batch_of(asks(PICTURES[0], "what?", "a dot"))
        features = ours.image_input.features(by_pixels.slots)[0].numpy()
        by_features = batch_of(sample(Image(Latents(features, (4, 4))), Text("what?"), Text("a dot", learn=True)))
        torch.testing.assert_close(hidden(ours, by_features), hidden(ours, by_pixels), atol=1e-5, rtol=1e-5)


def test_a_siglip_of_its_own_gives_the_encoder_s_features(tmp_path):
    import transformers as tf

    from unimm.published import vision

    torch.manual_seed(0)
    siglip = tf.SiglipVisionModel(tf.SiglipVisionConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
                                                        intermediate_size=40, image_size=32, patch_size=8)).eval()
    for p in siglip.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    siglip.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = vision(PretrainedVision(path=str(tmp_path)), 32)(images).last_hidden_state
        assert (ours - siglip(images).last_hidden_state).abs().max() <= 1e-5
    with pytest.raises(ConfigError, match="image_in.image is 64, but the encoder of .* sees 32"):
        vision(PretrainedVision(path=str(tmp_path)), 64)


def test_what_was_published_is_not_new_and_what_was_not_is(pair):
    model, ours, folder = pair
    recipe = recipe_of("janus", folder)
    assert new_rows(recipe, LAYOUT, ours) == {}
    fresh = replace(recipe, image_in=VisionFeatures(encoder=FreshVision(width=24, heads=4), image=32, depth=1),
                    image_out=SeparateHead(width=8))
    made = new_model(fresh, LAYOUT, NoTokenizer())
    named = {name for name, _ in made.named_parameters() if name.startswith(("image_input.", "image_output."))}
    assert set(new_rows(fresh, LAYOUT, made)) == named
    assert {name.split(".")[1] for name in named} == {"vision", "aligner", "codes", "code_aligner", "proj_out",
                                                      "vision_head"}


def refusal(recipe, layout=LAYOUT):
    with pytest.raises(ConfigError) as refused:
        new_model(recipe, layout, NoTokenizer())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_axes_that_do_not_fit_the_layout_are_refused(pair):
    recipe = recipe_of("janus", pair[2])
    assert "does not read 'features'" in refusal(replace(recipe, image_in=SharedTable()))
    assert "image_out is the shared softmax" in refusal(replace(recipe, image_out=SharedSoftmax()))
    assert "state the release's depth" in refusal(replace(recipe, image_in=replace(recipe.image_in, depth=3)))
    assert "sees 32" in refusal(replace(recipe, image_in=replace(recipe.image_in, image=64)))
    finer = VisionFeatures(encoder=FreshVision(patch=4, width=24), image=32)
    assert "gives 64 features" in refusal(replace(recipe, image_in=finer))
    wider = VisionFeatures(encoder=FreshVision(width=32), image=32)
    assert "have 32" in refusal(replace(recipe, image_in=wider))
    plain = replace(LAYOUT.config, read=None)
    books = (Codebook(name="visual", size=24, shared=False, start=ROWS),)
    assert "layout's `read`" in refusal(recipe, Layout(plain, BytesTokenizer(), books))


def test_codes_alone_are_not_read_as_features(pair):
    with pytest.raises(LayoutError, match="reads an image as features"):
        LAYOUT.render(sample(Image(CODES[0]), Text("x", learn=True)))
    slotted = batch_of(asks(PICTURES[0], "what?", "a dot"))
    with pytest.raises(SampleError, match="a shared table reads codes alone"):
        from model.families import tiny

        from unimm.model.image_input import ImageInput

        ImageInput()(tiny("qwen2").get_input_embeddings(), torch.zeros(1, 2, dtype=torch.long), None, slotted.slots)


def test_a_picture_is_read_whole_and_written_as_codes_at_once():
    both = sample(Image(CODES[0], seen=to_png(PICTURES[0])), Text("again"), Image(CODES[1], learn=True))
    sequence = LAYOUT.render(both)
    assert [slot.payload.shape for slot in sequence.slots] == [(32, 32, 3)]
    read = LAYOUT.parse(sequence.ids, sequence.learn, sequence.slots)
    assert read.images[0].content == Pixels(PICTURES[0]) and read.images[1].content == CODES[1]
