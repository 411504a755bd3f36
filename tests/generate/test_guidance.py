"""Every mode of guidance: which forms of the context it reads, how it weighs them, and what it says where a model never
learned one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dialects import layout_with, recipe, tokenizer
from ten_systems import TEN, content
from test_dialects_written import words
from tiny import TINY

from unimm.config.data import Use
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.sampling import Sampling
from unimm.generate.request import guides, untrained, warn
from unimm.layout import LayoutError
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.sample import Codes, Image, Latents, Text

PLAIN = TEN["tokenflow"].build()
PICTURE = Image(Codes.of_grid(np.arange(9).reshape(3, 3)))
EDIT = (Text("make it"), PICTURE, Text("red"))


@pytest.mark.parametrize("text, image, parts, weights", [
    (1.0, 0.0, EDIT, None),
    (3.0, 0.0, EDIT, (3.0, -2.0)),
    (3.0, 1.25, EDIT, (3.0, -1.75, -0.25)),
    (3.0, 1.25, (Text("a dot"),), (3.0, -2.0)),
    (3.0, 1.0, EDIT, (3.0, -2.0)),
    (3.0, 3.0, EDIT, (3.0, -2.0)),
    (1.0, 1.5, EDIT, (1.0, 0.5, -0.5)),
    (1.0, 1.0, EDIT, None),
    (0.0, 0.0, EDIT, (0.0, 1.0)),
    (3.0, 1.25, (), None)])
def test_branches_weigh_as_in_the_papers_and_those_of_no_weight_are_left_out(text, image, parts, weights):
    found = guides(PLAIN, Sampling(guidance=text, image_guidance=image), parts, (3, 3))
    assert (found and found.weights) == weights
    assert found is None or (len(found.prompts) == len(weights) - 1 and sum(weights) == 1)


def test_one_weight_drops_what_the_other_branches_would_have_read():
    """Guided by text alone an edit keeps its image in the other branch; by both alike it does not."""
    begin, bos = PLAIN.write_plans[3, 3].header, PLAIN.bos
    shown = PLAIN.prompt((PICTURE,)).ids.tolist()
    only_words = guides(PLAIN, Sampling(guidance=3.0, image_guidance=1.0), EDIT, (3, 3))
    assert only_words.prompts[0].ids.tolist() == [*shown, *begin]
    both = guides(PLAIN, Sampling(guidance=3.0, image_guidance=3.0), EDIT, (3, 3))
    assert both.prompts[0].ids.tolist() == [bos, *begin]


def test_two_way_guidance_reads_the_form_of_training():
    """Defect 19, for every kind of layout."""
    for name, toy in TEN.items():
        layout, rng = toy.build(), np.random.default_rng(0)
        parts = (Text("red", role="user"), Image(content(name, rng, False), role="user"))
        size = layout.config.sizes[0]
        found = guides(layout, Sampling(guidance=2.0), parts, size)
        assert np.array_equal(found.prompts[0].ids, layout.prompt(parts, "image", size, True).ids)


@torch.no_grad()
def test_three_way_guidance_is_its_formula_over_three_separate_forwards():
    torch.manual_seed(0)
    backbone = build_backbone(FreshBackbone(width=16, layers=2, heads=4, kv_heads=2, mlp=32), PLAIN.vocab,
                              SharedTable(rows="normal"), {})
    for parameter in backbone.parameters():
        parameter.data.mul_(6.0)
    model = UnifiedModel(backbone, PLAIN.vocab, ImageInput()).eval()

    def logits(ids):
        ids = torch.tensor([ids])
        hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids))[0, -1:]
        return model.head((slice(0, PLAIN.vocab.rows),))(hidden, None)

    begin, end, code = PLAIN.vocab.special["<boi>"], PLAIN.vocab.special["<eoi>"], PLAIN.vocab.ranges["visual"].start
    image = [begin, *range(code, code + 9), end]
    full = [PLAIN.bos, *b"make it", *image, *b"red", begin]
    f, i, u = (logits(ids) for ids in (full, [PLAIN.bos, *image, begin], [PLAIN.bos, begin]))
    found = guides(PLAIN, Sampling(guidance=3.0, image_guidance=1.2), EDIT, (3, 3))
    forms = (PLAIN.prompt(EDIT, "image", (3, 3)), *found.prompts)
    guided = sum(weight * logits(form.ids.tolist()) for weight, form in zip(found.weights, forms, strict=True))
    assert (f - i).abs().max() > 0.1 and (i - u).abs().max() > 0.1
    torch.testing.assert_close(guided, u + 1.2 * (i - u) + 3.0 * (f - i))


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<eoss>": 8196, "<racm3:break>": 8197}
    special |= {f"<reserved{n:05d}>": n + 4 for n in (8706, 8799, *range(8801, 8865))}
    return tokenizer(tmp_path_factory.mktemp("chameleon"), special, {}, 9000)


def test_chameleon_is_guided_as_in_its_release(chameleon):
    """chameleon/inference/chameleon.py, _split_inputs_for_cfg, and Options."""
    for name in ("chameleon_7b", "anole_7b"):
        layout, sampling = layout_with(name, chameleon), recipe(name).sampling
        rng = np.random.default_rng(0)
        pictures = [Image(Codes.of_grid(rng.integers(8192, size=(32, 32))), role="user") for _ in range(2)]
        parts = (Text("the one ", role="user"), pictures[0], Text(" is", role="user"), pictures[1])
        kept = {*range(4, 8196), 0, 8197, 8196}
        found = guides(layout, sampling, parts, (32, 32))
        full = layout.prompt(parts, "image").ids.tolist()
        assert [p.ids.tolist() for p in found.prompts] == [[i for i in full if i in kept], [0, 8197]]
        assert found.weights == pytest.approx((3.0, 1.2 - 3.0, 1 - 1.2))


def test_lumina_keeps_nothing_before_its_images(chameleon):
    layout = layout_with("lumina_mgpt_7b_768", chameleon, sizes=((2, 6),))
    parts = (Image(Codes.of_grid(np.arange(12).reshape(2, 6)), role="user"), Text("the one", role="user"))
    image = [8197, 8805, 8807, *range(4, 10), 8803, *range(10, 16), 8803, 8196]
    found = guides(layout, Sampling(guidance=4.0, image_guidance=1.5), parts, (2, 6))
    assert [p.ids.tolist() for p in found.prompts] == [[*image, 8197, 8805, 8807], [8197, 8805, 8807]]


@pytest.fixture(scope="module")
def emu3(tmp_path_factory):
    special = {"<|endoftext|>": 151643, "<|image token|>": 151851, "<|image start|>": 151852, "<|image end|>": 151853}
    special |= {f"<|extra_{n}|>": 151646 + n for n in range(205)}
    return tokenizer(tmp_path_factory.mktemp("emu3"), special, {}, 0)


def test_emu3_is_guided_away_from_words(emu3):
    """image_generation.py: what the processor makes of NEGATIVE_PROMPT, in the same size; without it the empty prompt
    of emu3/train/datasets.py."""
    layout, sampling = layout_with("emu3_gen", emu3), recipe("emu3_gen").sampling
    header = [151852, *words(emu3, "78*104"), 151851]
    found = guides(layout, sampling, (Text("the one" + sampling.positive),), (78, 104))
    assert found.prompts[0].ids.tolist() == [151849, *words(emu3, sampling.negative), *header]
    assert sampling.negative.startswith("lowres, bad anatomy") and found.weights == (3.0, -2.0)
    empty = guides(layout, replace(sampling, negative=""), (Text("the one"),), (78, 104))
    assert empty.prompts[0].ids.tolist() == [151849, *header]


def test_emu35_forgets_words_only_or_images_too(emu3):
    """configs/example_config_x2i.py, build_unc_and_template; no_text_img_cfg of src/utils/logits_processor.py."""
    layout, sampling = layout_with("emu3_5_image", emu3, sizes=((2, 6),)), recipe("emu3_5_image").sampling
    parts = (Image(Codes.of_grid(np.arange(12).reshape(2, 6)), role="user"), Text("the one", role="user"))
    header = [151852, *words(emu3, "2*6"), 151851]
    image = [*header, *range(151854, 151860), 151846, *range(151860, 151866), 151853]
    before, after = words(emu3, "You are a helpful assistant. USER: "), [*words(emu3, " ASSISTANT: "), 151746]
    no_text = [151849, *before, *image, *after, *header]
    no_any = [151849, *words(emu3, "You are a helpful assistant. USER:  ASSISTANT: "), 151746, *header]
    two = guides(layout, sampling, parts, (2, 6))
    assert [p.ids.tolist() for p in two.prompts] == [no_text] and two.weights == (5.0, -4.0)
    three = guides(layout, replace(sampling, guidance=3.0, image_guidance=2.0), parts, (2, 6))
    assert [p.ids.tolist() for p in three.prompts] == [no_text, no_any] and three.weights == (3.0, -1.0, -1.0)


def test_janus_reads_pads_in_place_of_words_and_of_images_too():
    """generation_inference.py: pads from the second id to the one before the image's beginning."""
    layout, rng = TEN["janus"].build(), np.random.default_rng(0)
    seen = Image(Latents(rng.standard_normal((9, 6)).astype(np.float32), (3, 3)), role="user")
    parts = (Text("make it", role="user"), seen, Text("red", role="user"))
    full = layout.prompt(parts, "image")
    found = guides(layout, Sampling(guidance=5.0, image_guidance=2.0), parts, (3, 3))
    images, nothing = (p.ids for p in found.prompts)
    assert nothing.tolist() == [layout.bos, *[layout.pad_id] * (len(full) - 2), full.ids[-1]]
    slot = full.slots[0]
    kept = slice(slot.start - 1, slot.start + 10)
    assert np.array_equal(images[kept], full.ids[kept]) and len(images) == len(full)
    assert (np.delete(images, np.r_[0, kept, len(full) - 1]) == layout.pad_id).all()
    kept, gone = (p.slots for p in found.prompts)
    assert (kept[0].start, len(kept), gone) == (slot.start, 1, ())
    assert np.array_equal(kept[0].payload, seen.content.array)


def test_negative_words_stand_beside_the_images_that_a_branch_keeps():
    """As in diffusers' InstructPix2Pix: away from the words, with the image in one branch, without it in the other."""
    three = guides(PLAIN, Sampling(guidance=3.0, image_guidance=1.2, negative="dull"), EDIT, (3, 3))
    wanted = [(PICTURE, Text("dull")), (Text("dull"),)]
    assert [p.ids.tolist() for p in three.prompts] == [PLAIN.prompt(w, "image").ids.tolist() for w in wanted]
    two = guides(PLAIN, Sampling(guidance=3.0, negative="dull"), EDIT, (3, 3))
    assert two.prompts[0].ids.tolist() == PLAIN.prompt(wanted[1], "image").ids.tolist()


def test_a_form_that_a_layout_has_no_place_for_is_refused_by_name():
    layout = TEN["liquid"].build()
    with pytest.raises(LayoutError, match="forgets a context as '<unused2>', which has no place for its images"):
        guides(layout, Sampling(guidance=3.0, image_guidance=1.2), EDIT, (3, 3))
    found = guides(layout, Sampling(guidance=3.0, image_guidance=1.2), (Text("a dot"),), (3, 3))
    assert found.prompts[0].ids.tolist()[1:] == [layout.vocab.special["<unused2>"], layout.vocab.special["<unused0>"]]


def with_stages(made, **changes):
    """The recipe with every language stage changed."""
    return replace(made, stages={name: replace(stage, **changes) for name, stage in made.language.items()})


def test_what_no_stage_trained_is_warned_about_by_name():
    never = with_stages(TINY, drop_context=0.0)
    assert untrained(TINY, Sampling(guidance=3.0)) == []
    assert untrained(never, Sampling(guidance=1.0, negative="dull")) == []
    assert untrained(never, Sampling(guidance=3.0)) == [
        "guidance 3 is asked for, but no stage of demo trained the unconditional form; train with "
        "--stages.sft.drop_context 0.1, or ask for guidance 1"]
    captions = with_stages(TINY, mix=(Use(data="pairs", task="caption"),), drop_context=0.1)
    assert len(untrained(captions, Sampling(guidance=3.0))) == 1, "captions have no context to forget"
    negative = untrained(TINY, Sampling(guidance=3.0, negative="dull"))
    assert len(negative) == 1 and "negative prompt" in negative[0] and "demo" in negative[0]
    three = Sampling(guidance=3.0, image_guidance=1.2)
    assert untrained(TINY, three) == [] and "image_guidance 1.2" in untrained(TINY, three, images=True)[0]
    assert untrained(TINY, Sampling(guidance=3.0, image_guidance=3.0), images=True) == []


def test_what_a_release_itself_does_is_no_cause_for_a_warning():
    for name in ("chameleon_7b", "anole_7b", "emu3_gen", "emu3_chat", "emu3_5_image", "janus_pro_1b", "liquid_7b"):
        made = recipe(name)
        assert untrained(made, made.sampling, images=True) == []
    janus = recipe("janus_pro_1b")
    asked = replace(janus.sampling, image_guidance=1.5, negative="dull")
    assert [line.split(" is asked")[0] for line in untrained(janus, asked, images=True)] == [
        "image_guidance 1.5", "a negative prompt"]
    assert untrained(recipe("emu3_5_image"), replace(janus.sampling, image_guidance=1.5), images=True) == []


def test_a_warning_is_one_line_and_is_said_once(capsys):
    for _ in range(2):
        warn(with_stages(TINY, drop_context=0.0), Sampling(guidance=2.75))
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("unimm: warning: guidance 2.75 is asked for, but no stage of demo")
