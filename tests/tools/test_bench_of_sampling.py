"""The benchmark of sampling at toy size: its two sides write the same ids, and otherwise it has no row."""

import pytest

from tools import samplers
from tools.bench import __main__ as bench
from tools.bench import rows, sampling
from tools.samplers import Ask, caption, greedy


def test_the_bench_of_sampling_goes_through_at_toy_size():
    found = bench.run("sampling", toy=True)
    assert found and all(row.ours > 0 and row.theirs > 0 and row.peer and row.wanted for row in found)
    assert {"generate", "transformers, DynamicCache", "Emu3ForConditionalGeneration"} <= {row.peer for row in found}


def test_a_peer_that_writes_other_ids_gets_no_row(monkeypatch):
    def other(world, ask):
        first, *rest = true(world, ask)
        return [first ^ 1, *rest]

    true = samplers.text
    assert next(sampling.text(toy=True)).theirs > 0
    monkeypatch.setattr(samplers, "text", other)
    with pytest.raises(rows.Unequal, match="ids of greedy text"):
        next(sampling.text(toy=True))


def test_what_transformers_draws_depends_on_its_guidance_its_prompt_and_keeps_to_the_image():
    world = samplers.world(sampling.TINY, sizes=((3, 2),))
    asks = [Ask(caption(n), (3, 2), guidance) for n in (0, 1) for guidance in (1.5, 6.0)]
    drawn = [samplers.image(world, ask) for ask in asks]
    assert len({tuple(ids) for ids in drawn}) == len(asks)
    assert drawn == [greedy(world, [ask])[0] for ask in asks]
    vocab = world.layout.vocab
    assert drawn[0][2::3][:3] == [vocab.special["<|extra_200|>"]] * 3
    assert all(vocab.is_code[drawn[0][at]] for at in (0, 1, 3, 4, 6, 7))


def test_text_behind_a_context_is_the_same_however_often_it_is_written():
    world = samplers.world(sampling.TINY, draws=False)
    ours, theirs = samplers.Ours(world, 12), samplers.Growing(world, 12)
    assert ours.steps(6) == ours.steps(6) == theirs.steps(6) == theirs.steps(6)
