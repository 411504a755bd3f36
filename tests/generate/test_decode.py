from dataclasses import replace

import numpy as np
import pytest
import torch
from model.families import FAMILIES, tiny
from ten_systems import TEN

from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.sampling import Choice, Sampling
from unimm.generate.choose import choose
from unimm.generate.decode import Request, decode, image_request
from unimm.grammar import Automaton
from unimm.model.attention import NAME, use_packed_attention
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.sample import Text

LAYOUT = TEN["emu3"].build()
AUTOMATON = LAYOUT.automaton()
GREEDY = Sampling(image=Choice(temperature=0.0), guidance=1.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = build_backbone(FreshBackbone(width=16, layers=2, heads=4, kv_heads=2, mlp=32), LAYOUT.vocab,
                          SharedTable(rows="normal"), {})
    for parameter in made.parameters():
        parameter.data.mul_(6.0)
    begins = [plan.header[0] for plan in LAYOUT.write_plans.values()]
    image_input = ImageInput(SharedTable(places=12), LAYOUT.vocab, begins, 16)
    image_input.places.weight.data.mul_(6.0)
    return UnifiedModel(made, LAYOUT.vocab, image_input).eval()


def images(n: int, guides: bool = True) -> list[Request]:
    """Rows of different prompts, lengths and sizes, so that each is at its own place."""
    return [image_request(LAYOUT, AUTOMATON, (Text("x" * (1 + k % 4)),), LAYOUT.config.sizes[k % 3], guides, seed=k)
            for k in range(n)]


def slow(model, request: Request, sampling: Sampling) -> list[int]:
    """One row, one branch at a time, no cache, full logits: what the loop must equal."""
    state, written = request.start, []
    rng = np.random.default_rng(request.seed)

    def logits(prompt):
        embedded, _ = model.image_input(model.backbone.get_input_embeddings(),
                                        torch.tensor([prompt.ids.tolist() + written]))
        return model.backbone(inputs_embeds=embedded).logits[0, -1]

    while state != Automaton.TEXT or not written:
        allowed = AUTOMATON.sets[AUTOMATON.set_of[state]]
        if len(allowed) == 1:
            pick = allowed[0]
        else:
            u, c = logits(request.unconditional), logits(request.prompt)
            scores = (u + sampling.guidance * (c - u))[torch.as_tensor(allowed)]
            if sampling.image.temperature == 0:
                pick = allowed[int(scores.argmax())]
            else:
                p = torch.softmax(scores.double() / sampling.image.temperature, -1).detach().numpy()
                pick = allowed[int(np.searchsorted(p.cumsum(), rng.random() * p.sum(), side="right"))]
        written.append(int(pick))
        state = int(AUTOMATON.advance(np.array([state]), np.array([pick]))[0])
    return written


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guided_rows_equal_two_passes_without_cache_each_row_alone(model, temperature):
    """Defect 14: decoding constrained by row 0 only; defect 15: guidance as two forwards."""
    sampling = Sampling(image=Choice(temperature=temperature), guidance=2.5)
    requests = images(6)
    decode(model, LAYOUT, AUTOMATON, requests, sampling)
    for request in requests:
        assert request.ids == slow(model, request, sampling)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_and_soft_caps_hold_over_the_cache_as_in_transformers_own_attention_without_one(family):
    backbone = tiny(family, vocab_size=LAYOUT.vocab.rows, sliding_window=4)
    image_input = ImageInput(SharedTable(), LAYOUT.vocab, [], 32)
    model = UnifiedModel(backbone, LAYOUT.vocab, image_input).eval()
    requests, sampling = images(4), Sampling(image=Choice(temperature=0.0), guidance=2.0)
    use_packed_attention(backbone)
    decode(model, LAYOUT, AUTOMATON, requests, sampling)
    assert backbone.config._attn_implementation == NAME
    backbone.set_attn_implementation("eager")
    for request in requests:
        assert len(request.prompt) + len(request.ids) > 3 * 4  # the window is left behind
        assert request.ids == slow(model, request, sampling)


def test_text_equals_transformers_own_greedy_generation(model):
    prompts = [LAYOUT.prompt((Text(t, role="user"),)) for t in ("hello", "a", "what is this?")]
    requests = [Request(p, limit=12) for p in prompts]
    decode(model, LAYOUT, AUTOMATON, requests, GREEDY)
    allowed = AUTOMATON.sets[AUTOMATON.set_of[Automaton.TEXT]].tolist()
    stops = {LAYOUT.eos, LAYOUT.vocab.special["<end>"], LAYOUT.vocab.special["<|image start|>"]}
    for request in requests:
        ids = torch.tensor([request.prompt.ids.tolist()])
        made = model.backbone.generate(
            ids, max_new_tokens=12, do_sample=False, use_cache=False, attention_mask=torch.ones_like(ids),
            pad_token_id=LAYOUT.pad_id, eos_token_id=sorted(stops), prefix_allowed_tokens_fn=lambda *_: allowed)
        assert request.ids == made[0, ids.shape[1]:].tolist()


def test_a_seed_gives_the_same_image_at_any_batch_size(model):
    sampling = Sampling(image=Choice(top_k=20, top_p=0.9), guidance=2.0)
    together, alone = images(7), images(7)
    decode(model, LAYOUT, AUTOMATON, together, sampling)
    decode(model, LAYOUT, AUTOMATON, alone, sampling, batch=1)
    assert [r.ids for r in together] == [r.ids for r in alone]
    others = [replace(r, seed=r.seed + 100, ids=[]) for r in images(7)]
    decode(model, LAYOUT, AUTOMATON, others, sampling)
    assert [r.ids for r in together] != [r.ids for r in others]


def test_text_stops_at_its_limit_at_its_end_and_where_an_image_begins(model):
    begin = LAYOUT.vocab.special["<|image start|>"]
    requests = [Request(LAYOUT.prompt((Text(t),)), seed=k, limit=9) for k, t in enumerate("abcdefgh" * 8)]
    decode(model, LAYOUT, AUTOMATON, requests, Sampling(text=Choice(temperature=8.0)))
    enders = {LAYOUT.eos, LAYOUT.vocab.special["<end>"], begin}
    for r in requests:
        assert 1 <= len(r.ids) <= 9
        assert not enders & set(r.ids[:-1])
        assert len(r.ids) == 9 or r.ids[-1] in enders
    assert any(len(r.ids) < 9 for r in requests) and any(len(r.ids) == 9 for r in requests)


def test_chosen_ids_follow_the_distribution_within_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, 4)
    uniform = (np.arange(4000) + 0.5) / 4000
    found = np.bincount(choose(logits, uniform, Choice()), minlength=4) / 4000
    np.testing.assert_allclose(found, [0.5, 0.3, 0.15, 0.05], atol=1e-3)
    assert set(choose(logits, uniform, Choice(top_k=2))) == {0, 1}
    assert set(choose(logits, uniform, Choice(top_p=0.79))) == {0, 1}
    assert set(choose(logits, uniform, Choice(top_p=0.81))) == {0, 1, 2}
    assert set(choose(logits, uniform, Choice(top_p=0.01))) == {0}
    assert set(choose(logits, uniform, Choice(temperature=0.0))) == {0}
    assert choose(logits[:1], np.array([1.0 - 1e-12]), Choice())[0] == 3
