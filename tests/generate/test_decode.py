from dataclasses import replace

import numpy as np
import pytest
import torch
from model.families import FAMILIES, tiny
from ten_systems import TEN, content

from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.sampling import Choice, Sampling
from unimm.generate import lines
from unimm.generate.choose import gumbel, marks, places
from unimm.generate.decode import decode
from unimm.generate.request import Request, drawing, guides
from unimm.grammar import Automaton
from unimm.model.attention import NAME, use_packed_attention
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput, Places
from unimm.model.unified import UnifiedModel
from unimm.sample import Image, Text

LAYOUT = TEN["emu3"].build()
AUTOMATON = LAYOUT.automaton
FREE = Sampling(image=Choice(), guidance=2.0)
GREEDY = Sampling(image=Choice(temperature=0.0), guidance=1.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = build_backbone(FreshBackbone(width=16, layers=2, heads=4, kv_heads=2, mlp=32), LAYOUT.vocab,
                          SharedTable(rows="normal"), {})
    for parameter in made.parameters():
        parameter.data.mul_(6.0)
    begins = [plan.header[0] for plan in LAYOUT.write_plans.values()]
    image_input = ImageInput(Places(12, LAYOUT.vocab.is_code, begins, 16))
    image_input.places.weight.data.mul_(6.0)
    return UnifiedModel(made, LAYOUT.vocab, image_input).eval()


def images(n: int, sampling: Sampling, seed: int = 0) -> list[Request]:
    """Rows of different prompts, lengths and sizes, so that each is at its own place."""
    return [drawing((Text("x" * (1 + k % 4)),), sampling, LAYOUT.config.sizes[k % 3], seed + k) for k in range(n)]


@torch.no_grad()
def slow(model, request: Request) -> list[int]:
    """One row, one branch at a time, no cache, full logits, in float64: what the loop must equal."""
    how, size, written = request.sampling, request.size, []
    guiding = guides(LAYOUT, how, request.parts, size)
    prompts = [LAYOUT.prompt(request.parts, "image", size), *(guiding.prompts if guiding else ())]
    weights = guiding.weights if guiding else (1.0,)
    state = AUTOMATON.after(LAYOUT.write_plans[size].header)

    def logits(prompt):
        embedded, _ = model.image_input(model.backbone.get_input_embeddings(),
                                        torch.tensor([prompt.ids.tolist() + written]))
        return model.backbone(inputs_embeds=embedded).logits[0, -1].double()

    while state != Automaton.TEXT or not written:
        allowed = AUTOMATON.sets[AUTOMATON.set_of[state]]
        scores = sum(w * logits(p) for w, p in zip(weights, prompts))[torch.as_tensor(allowed)]
        if how.image.temperature:
            place = places(np.array([request.seed], np.uint64), np.array([len(written)]))
            noise = gumbel(torch.from_numpy(place), torch.from_numpy(marks(allowed)))[0]
            scores = scores / how.image.temperature + noise
        written.append(int(allowed[int(scores.argmax())]))
        state = int(AUTOMATON.advance(np.array([state]), np.array(written[-1:]))[0])
    return written


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guided_rows_equal_two_passes_without_cache_each_row_alone(model, temperature):
    """Defect 14: decoding constrained by row 0 only; defect 15: guidance as two forwards."""
    requests = images(6, Sampling(image=Choice(temperature=temperature), guidance=2.5))
    decode(model, LAYOUT, requests)
    for request in requests:
        assert request.ids == slow(model, request)


@pytest.mark.parametrize("window", [1, 4])
def test_edits_guided_three_ways_equal_three_passes_without_cache(model, window):
    how, rng = Sampling(image=Choice(), guidance=3.0, image_guidance=1.5, window=window), np.random.default_rng(0)
    requests = [drawing((Image(content("emu3", rng, False)), Text("x" * k)), how, LAYOUT.config.sizes[k % 3], k)
                for k in range(1, 4)]
    requests.append(drawing((Text("x"),), how, (2, 3)))  # nothing to keep: two ways
    decode(model, LAYOUT, requests)
    for request in requests:
        assert request.ids == slow(model, request)


def test_prompts_that_are_read_in_several_forwards_are_read_the_same(model, monkeypatch):
    requests, again = images(7, FREE), images(7, FREE)
    decode(model, LAYOUT, requests)
    monkeypatch.setattr(lines, "AT_ONCE", 20)
    decode(model, LAYOUT, again)
    assert [r.ids for r in requests] == [r.ids for r in again]


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_and_soft_caps_hold_over_the_cache_as_in_transformers_own_attention_without_one(family):
    backbone = tiny(family, vocab_size=LAYOUT.vocab.rows, sliding_window=4)
    model = UnifiedModel(backbone, LAYOUT.vocab, ImageInput()).eval()
    requests = images(4, Sampling(image=Choice(temperature=0.0), guidance=2.0))
    use_packed_attention(backbone)
    decode(model, LAYOUT, requests)
    assert backbone.config._attn_implementation == NAME
    backbone.set_attn_implementation("eager")
    for request in requests:
        prompt = LAYOUT.prompt(request.parts, "image", request.size)
        assert len(prompt) + len(request.ids) > 3 * 4  # the window is left behind
        assert request.ids == slow(model, request)


def test_text_equals_transformers_own_greedy_generation(model):
    requests = [Request((Text(t, role="user"),), replace(GREEDY, text_length=12))
                for t in ("hello", "a", "what is this?")]
    decode(model, LAYOUT, requests)
    allowed = AUTOMATON.sets[AUTOMATON.no_image].tolist()
    stops = {LAYOUT.eos, LAYOUT.vocab.special["<end>"]}
    for request in requests:
        ids = torch.tensor([LAYOUT.prompt(request.parts).ids.tolist()])
        made = model.backbone.generate(
            ids, max_new_tokens=12, do_sample=False, use_cache=False, attention_mask=torch.ones_like(ids),
            pad_token_id=LAYOUT.pad_id, eos_token_id=sorted(stops), prefix_allowed_tokens_fn=lambda *_: allowed)
        assert request.ids == made[0, ids.shape[1]:].tolist()


def test_a_seed_gives_the_same_image_at_any_batch_size(model):
    sampling = Sampling(image=Choice(top_k=20, top_p=0.9), guidance=2.0)
    together, alone, others = images(7, sampling), images(7, sampling), images(7, sampling, seed=100)
    decode(model, LAYOUT, together)
    decode(model, LAYOUT, alone, rows=1)
    decode(model, LAYOUT, others)
    assert [r.ids for r in together] == [r.ids for r in alone]
    assert [r.ids for r in together] != [r.ids for r in others]
