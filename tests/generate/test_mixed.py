"""Rows of every kind in one batch, each at its own place of its own image: what each writes is what it writes alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from generate.test_choose import chi_squared
from generate.worlds import DRAWN, FREE, LAYOUTS, SHARED, mixed, model_of
from ten_systems import Toy, plain

from unimm.config.sampling import Choice, Sampling
from unimm.config.tokens import Codebook, LevelLayout
from unimm.generate.choose import gumbel, marks, places
from unimm.generate.decode import Decoder, decode, decoded
from unimm.generate.request import Request, drawing, guides, written
from unimm.grammar import Automaton
from unimm.sample import Image, Text

MODELS = {name: model_of(layout, places=40 if name == "emu3" else 0) for name, layout in LAYOUTS.items()}


def ids_of(requests: list[Request]) -> list[list[int]]:
    return [request.ids for request in requests]


def alone(name: str, requests: list[Request]) -> list[list[int]]:
    for request in requests:
        decode(MODELS[name], LAYOUTS[name], [request])
    return ids_of(requests)


@pytest.fixture(scope="module", params=LAYOUTS)
def world(request):
    """(name, the ids that 16 mixed requests write alone)"""
    return request.param, alone(request.param, mixed(request.param, LAYOUTS[request.param]))


def test_sixteen_mixed_requests_at_once_write_what_each_writes_alone(world):
    name, expected = world
    requests = mixed(name, LAYOUTS[name])
    decode(MODELS[name], LAYOUTS[name], requests)
    assert ids_of(requests) == expected
    kinds = []
    for request in requests:
        parts = written(LAYOUTS[name], request)
        kinds.append("".join("i" if isinstance(part, Image) else "t" for part in parts))
    assert "t" in kinds and "i" in kinds and any("it" in kind for kind in kinds)
    assert any(kind.startswith("ti") for kind in kinds), "the model itself began an image"


@pytest.mark.parametrize("rows", [1, 5])
def test_fewer_rows_than_requests_give_the_same_as_rows_end_and_others_begin(world, rows):
    name, expected = world
    requests = mixed(name, LAYOUTS[name])
    ended = [request for some in decoded(MODELS[name], LAYOUTS[name], requests, rows) for request in some]
    assert ids_of(requests) == expected
    assert set(map(id, ended)) == set(map(id, requests)) and len(ended) == len(requests)
    assert rows == 1 or ended != requests, "a short one does not wait for a long one"


@pytest.mark.parametrize("window", [2, 4, 8])
def test_wider_windows_write_the_same_ids_in_fewer_steps(world, window):
    name, expected = world
    one, wide = mixed(name, LAYOUTS[name]), mixed(name, LAYOUTS[name], window=window)
    for k, request in enumerate(wide):
        request.sampling = replace(request.sampling, window=1 if k % 8 == 1 else window)
    for requests in (one, wide):
        decode(MODELS[name], LAYOUTS[name], requests)
    assert ids_of(wide) == expected
    steps = sum(r.steps for r in wide), sum(r.steps for r in one)
    assert steps[0] == steps[1] if name in DRAWN else steps[0] < steps[1], "only ids are read ahead"


def test_requests_join_and_leave_between_steps(world):
    name, expected = world
    requests, decoder = mixed(name, LAYOUTS[name]), Decoder(MODELS[name], LAYOUTS[name], rows=6)
    dropped = [requests[5], requests[3], requests[14]]
    for step in range(400):
        if step < 16:
            decoder.add(requests[step])
        if step == 9:
            decoder.drop(dropped[0])
            decoder.drop(dropped[1])
        if step == 16:
            decoder.drop(dropped[2])
        decoder.step()
    assert not decoder.busy and len(decoder.lines) == 0
    for request, ids in zip(requests, expected):
        if any(request is each for each in dropped):
            assert request.ids == ids[:len(request.ids)]
        else:
            assert request.ids == ids
    assert len(requests[14].ids) < len(expected[14])


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_image_begins_where_none_is_asked_for(name):
    layout, model = LAYOUTS[name], MODELS[name]
    images = {plan.header[0] for plan in layout.write_plans.values()} | set(np.flatnonzero(layout.vocab.is_code))
    hot = replace(FREE, text=Choice(temperature=9.0), text_length=60)
    free, none = ([Request((Text("x"),), hot, seed, images=images) for seed in range(30)] for images in (3, 0))
    behind = [Request((Text("x"),), hot, seed, layout.config.sizes[0]) for seed in range(10)]
    decode(model, layout, free + none + behind)
    assert any(images & set(request.ids) for request in free)
    assert not any(images & set(request.ids) for request in none)
    assert all(len(request.ids) == 60 or request.ids[-1] in layout.automaton.sets[0] for request in none)
    for request in behind:
        parts = written(layout, request)
        assert [isinstance(part, Image) for part in parts].count(True) == 1 and isinstance(parts[0], Image)


def replayed(name: str, request: Request) -> list[int]:
    """The ids of an interleaved request by full recomputation: no cache, no loop, every branch a forward of its own."""
    layout, model, automaton = LAYOUTS[name], MODELS[name], LAYOUTS[name].automaton
    how, branches, weights, images, left = request.sampling, [], (1.0,), request.images, request.sampling.text_length
    state, ids = Automaton.TEXT, []
    branches = [layout.prompt(request.parts).ids.tolist()]

    def logits(read: list[int]) -> torch.Tensor:
        given = torch.tensor([read])
        hidden = model.hidden(given, torch.arange(len(read))[None], torch.ones_like(given))[0, -1:]
        return model.head((slice(0, layout.vocab.rows),))(hidden, None)[0].double().numpy()

    while True:
        allowed = automaton.sets[automaton.set_of[state]]
        if state == Automaton.TEXT and not images:
            allowed = automaton.sets[automaton.no_image]
        choice = how.text if state == Automaton.TEXT else how.image
        key = torch.from_numpy(places(np.array([request.seed], np.uint64), np.array([len(ids)])))
        noise = gumbel(key, torch.from_numpy(marks(allowed)))[0].numpy()
        mean = sum(w * logits(branch) for w, branch in zip(weights, branches))
        ids.append(int(allowed[np.argmax(mean[allowed] / choice.temperature + noise)]))
        before, state = state, int(automaton.advance(np.array([state]), np.array(ids[-1:]))[0])
        branches = [branch + ids[-1:] for branch in branches]
        left -= before == state == Automaton.TEXT
        if state == Automaton.DONE or left == 0:
            return ids
        if state in automaton.headers:
            so_far = Request(request.parts, how, ids=ids)
            guiding = guides(layout, how, (*request.parts, *written(layout, so_far)),
                             automaton.headers[state])
            branches, weights = [branches[0], *(p.ids.tolist() for p in guiding.prompts)], guiding.weights
        if state == Automaton.TEXT != before:
            images, branches, weights = images - 1, branches[:1], (1.0,)


@pytest.mark.parametrize("name", SHARED)
@torch.no_grad()
def test_documents_written_on_equal_full_recomputation_of_every_branch(name):
    begun = 0
    for seed in range(40, 43):
        made = Request((Text("ab" * (seed % 3 + 1)),), replace(FREE, guidance=2.5), seed, images=2)
        decode(MODELS[name], LAYOUTS[name], [made])
        assert made.ids == replayed(name, made)
        begun += any(LAYOUTS[name].vocab.is_code[made.ids])
    assert begun


@torch.no_grad()
def test_the_images_of_speculative_decoding_have_the_models_own_probabilities():
    """All 27 images of three codes of three, by chi-squared."""
    toy = Toy(plain("<boi>", "<eoi>", LevelLayout(space="visual"), sizes=((1, 3),)), (Codebook(name="visual", size=3),))
    layout, n = toy.build(), 3000
    model, prompt = model_of(layout), layout.prompt((Text("x"),), "image").ids.tolist()
    start = layout.vocab.ranges["visual"].start
    p = np.ones(27)
    for image, codes in enumerate(np.ndindex(3, 3, 3)):
        ids = torch.tensor([prompt + [start + code for code in codes]])
        hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids))[0, -4:-1]
        chances = model.head((slice(start, start + 3),))(hidden, None).double().div(3).softmax(-1)
        p[image] = float(chances[[0, 1, 2], codes].prod())
    how = Sampling(image=Choice(temperature=3.0), guidance=1.0, window=3)
    requests = [drawing((Text("x"),), how, (1, 3), seed) for seed in range(n)]
    decode(model, layout, requests)
    drawn = np.array([request.ids[:3] for request in requests]) - start
    found = np.bincount(drawn @ [9, 3, 1], minlength=27)
    assert p.sum() == pytest.approx(1) and p.max() < 0.5
    assert abs(chi_squared(found, n * p)) < 4
    assert np.mean([request.steps for request in requests]) < 3.5


@pytest.mark.parametrize("name", ["liquid", "emu3", "illume_plus", "janus"])
def test_an_image_takes_a_step_for_each_code_and_none_for_ids_without_a_choice(name):
    layout = LAYOUTS[name]
    for size in layout.config.sizes[:3]:
        request = drawing((Text("x"),), FREE, size)
        decode(MODELS[name], layout, [request])
        assert request.steps == np.count_nonzero(layout.vocab.is_code[request.ids]) <= len(request.ids)
        image = written(layout, request)[0].content
        assert image.levels[0].grid == size


def test_a_past_longer_than_its_memory_is_moved_and_kept():
    layout, model = LAYOUTS["liquid"], MODELS["liquid"]
    long = [Request((Text("x" * n),), replace(FREE, text_length=90), 7) for n in (1, 40, 3)]
    decoder = Decoder(model, layout)
    for request in long:
        decoder.add(request)
        for _ in range(20):
            decoder.step()
    while decoder.busy:
        decoder.step()
    assert ids_of(long) == alone("liquid", [replace(request, ids=[]) for request in long])
