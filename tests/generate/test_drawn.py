"""Several codes, or a latent, at one id: drawn by a head of their own, in the loop that draws everything else."""

import numpy as np
import pytest
import torch
from generate.worlds import DRAWN, FREE, LAYOUTS, mixed, model_of
from ten_systems import content

from unimm.config.model import FlowHead as FlowConfig
from unimm.generate.choose import choose, marks, normal, places
from unimm.generate.decode import decode
from unimm.generate.guidance import guides
from unimm.generate.request import drawing, written
from unimm.model.image_output import FlowHead
from unimm.sample import Codes, Image, Latents, Slot, Text
from unimm.stream.batches import make_batch
from unimm.vocab import Range

MODELS = {name: model_of(LAYOUTS[name]) for name in DRAWN}


@pytest.mark.parametrize("name", DRAWN)
def test_what_stands_at_an_id_does_not_depend_on_the_other_rows(name):
    together, alone = mixed(name, LAYOUTS[name]), mixed(name, LAYOUTS[name])
    decode(MODELS[name], LAYOUTS[name], together, rows=5)
    for request in alone:
        decode(MODELS[name], LAYOUTS[name], [request])
    assert sum(len(request.drawn) for request in alone) > 50
    for one, other in zip(together, alone):
        assert one.ids == other.ids and len(one.drawn) == len(other.drawn)
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(one.drawn, other.drawn))


@pytest.mark.parametrize("name", DRAWN)
@torch.no_grad()
def test_a_guided_image_equals_full_recomputation_of_every_branch(name):
    """No cache: the whole sequence of each branch is read anew for every position, as training reads it."""
    layout, model, size = LAYOUTS[name], MODELS[name], LAYOUTS[name].config.sizes[0]
    head, shown = model.image_output, Image(content(name, np.random.default_rng(1), False), role="user")
    request = drawing((shown, Text("red", role="user")), FREE, size, seed=3)
    guiding = guides(layout, FREE, request.parts, size)
    branches = [layout.prompt(request.parts, "image", size), *guiding.prompts]
    weights = torch.tensor([guiding.weights])
    values = np.zeros((0, head.depth), np.float32 if name == "ming_univision" else np.int64)
    for n in range(layout.write_plans[size].lengths(0)[0]):
        hidden = []
        for prompt in branches:
            ids = torch.tensor([prompt.ids.tolist() + [head.placeholder] * n])
            slots = [(0, slot) for slot in prompt.slots]
            slots += [(0, Slot(len(prompt), n, head.space, True, values))] if n else []
            hidden.append(model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids),
                                       slots=tuple(slots))[0, -1])
        place = torch.from_numpy(places(np.array([3], np.uint64), np.array([n])))
        if name == "ming_univision":
            made = head.draw(torch.stack(hidden)[None], weights, normal(place, torch.from_numpy(
                marks(np.arange(head.depth)))) * FREE.image.temperature)
        else:
            made = head.draw(torch.stack(hidden)[None], weights, lambda logits, first, place=place: choose(
                logits, FREE.image, place, torch.from_numpy(marks(np.arange(first, first + logits.shape[1])))))
        values = np.concatenate([values, made.numpy()])
    decode(model, layout, [request])
    assert np.allclose(np.stack(request.drawn), values, atol=1e-3)
    found = written(layout, layout.automaton, request)[-1].content
    assert isinstance(found, Latents if name == "ming_univision" else Codes)
    found = found.levels[0].ids if isinstance(found, Codes) else found.array
    assert np.array_equal(found, np.stack(request.drawn))


@torch.no_grad()
def test_the_loss_of_several_codes_is_that_of_a_loop_over_positions_and_depth():
    layout, model = LAYOUTS["fqgan"], MODELS["fqgan"]
    codes = content("fqgan", np.random.default_rng(0), True)
    sequence = layout.render(_drawn_sample(codes))
    found = model(make_batch([[sequence]], 40, layout.pad_id, layout.vocab.is_code))
    ids = torch.from_numpy(sequence.ids).long()[None]
    hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids),
                          slots=tuple((0, slot) for slot in sequence.slots))[0]
    total = 0.0
    for n, row in enumerate(codes.levels[0].ids):
        for d, code in enumerate(row):
            before = torch.from_numpy(row[None, :d]).long()
            state = model.image_output.states(hidden[sequence.slots[0].start + n - 1][None], before)[0, -1]
            total -= float(model.image_output.heads[d](state).double().log_softmax(-1)[code])
    begin, end = sequence.slots[0].start, sequence.slots[0].start + sequence.slots[0].length
    image = float(found.parts["image"][0])
    assert image == pytest.approx(total, rel=1e-4)
    assert sum(float(found.parts[f"image.{d}"][0]) for d in range(4)) == pytest.approx(total, rel=1e-4)
    assert end - begin == 9 and int(found.parts["image"][1]) == 9


def _drawn_sample(codes):
    from unimm.sample import Sample

    return Sample((Text("red"), Image(codes, learn=True)))


def test_a_flow_head_learns_a_known_distribution():
    """Two points with odds of three to one, told apart by nothing but chance; the condition moves both."""
    torch.manual_seed(0)
    head = FlowHead(FlowConfig(width=64, layers=2, steps=16, repeat=4), Range("x", 0, 1, 2, True), 4, 1)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(600):
        hidden = torch.randint(2, (64, 1)).float() * torch.ones(64, 4)
        points = torch.where(torch.rand(64, 1) < 0.75, torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]]))
        total, _ = head.loss(hidden, points + 3 * hidden[:, :1], torch.ones(64))
        optimizer.zero_grad()
        (total / 64).backward()
        optimizer.step()
    with torch.no_grad():
        for condition in (0.0, 1.0):
            hidden = torch.full((2000, 1, 4), condition)
            drawn = head.draw(hidden, torch.ones(2000, 1), torch.randn(2000, 2)) - 3 * condition
            first = (drawn - torch.tensor([1.0, -1.0])).norm(dim=1) < 0.5
            second = (drawn - torch.tensor([-1.0, 1.0])).norm(dim=1) < 0.5
            assert (first | second).float().mean() > 0.9
            assert abs(float(first.sum() / (first | second).sum()) - 0.75) < 0.06


def test_noise_of_latents_is_normal_and_belongs_to_its_place():
    key = torch.from_numpy(places(np.arange(5000, dtype=np.uint64), np.zeros(5000, np.int64)))
    noise = normal(key, torch.from_numpy(marks(np.arange(4))))
    assert noise.mean().abs() < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.05
    assert torch.equal(normal(key[7:8], torch.from_numpy(marks(np.arange(4)))), noise[7:8])
