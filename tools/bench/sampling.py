"""Sampling: our loop against transformers' `generate`, on identical weights, greedy, identical ids asserted first.

    text            against `generate` alone
    images          against `generate` with its guidance and a prefix constraint, as Emu3's release draws
    long contexts   one step against a growing DynamicCache
    vocabulary      an image token costs the same however much text there is
    released        against transformers' own Emu3 and Janus classes
    batch           sixteen mixed requests at once against one by one
    speculative     the steps of a trained run's images with and without drafts: of runs/demo, or of $UNIMM_RUN
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import transformers

from tools import released, samplers
from tools.bench.rows import Row, equal, faster, interleaved, main, within
from tools.samplers import Ask, World, caption, greedy
from unimm.config.model import FreshBackbone
from unimm.config.sampling import Choice
from unimm.generate.request import Request
from unimm.sample import Text
from unimm.system import RECIPE_FILE, open_run

TINY = FreshBackbone(family="llama", width=64, layers=2, heads=4, kv_heads=4, mlp=128)
SMALL = FreshBackbone(family="llama", width=128, layers=4, heads=4, kv_heads=4, mlp=344)
LARGER = FreshBackbone(family="llama", width=256, layers=6, heads=4, kv_heads=4, mlp=704)
CODES = 16_384
GUIDANCE = 3.0  # Emu3's
RUN = Path(os.environ.get("UNIMM_RUN", "runs/demo"))
CAPTIONS = ("a red circle", "a small green square at the top left", "a blue triangle to the left of a red circle",
            "three yellow squares", "a large white star", "two small blue circles")


def compare(claim: str, peer: str, world: World, ask: Ask, theirs: Callable[[World, Ask], list[int]], at_least: float,
            repeats: int) -> Row:
    """CPU milliseconds per id that is written."""
    sides = partial(greedy, world, [ask]), partial(theirs, world, ask)
    ids = sides[1]()
    equal(f"ids of {claim} by {peer}", sides[0]()[0], ids)
    ours, other = (seconds / len(ids) * 1e3 for seconds in interleaved(*sides, repeats))
    return faster(claim, peer, ours, other, "CPU ms / id", at_least)


def text(toy: bool) -> Iterable[Row]:
    ask = Ask(caption(), limit=8 if toy else 512)
    for name, shape, ids, wanted in (("0.14 M", TINY, 400, 2.5), ("7 M", LARGER, 4096, 1.3))[:1 if toy else 2]:
        world = samplers.world(shape, ids, draws=False)
        yield compare(f"greedy text, {name} parameters", "generate", world, ask, samplers.text, 0.1 if toy else wanted,
                      1 if toy else 9)


def images(toy: bool) -> Iterable[Row]:
    side = 2 if toy else 8
    ask = Ask(caption(), (side, side), GUIDANCE)
    for vocab, wanted in ((1000, 0.1),) if toy else ((25_000, 3), (160_000, 8)):
        codes = vocab // 2 if toy else CODES
        world = samplers.world(SMALL, vocab - codes, codes, ((side, side),))
        yield compare(f"guided image, {vocab:,} ids", "generate, guidance, prefix constraint", world, ask,
                      samplers.image, wanted, 1 if toy else 5)


def contexts(toy: bool) -> Iterable[Row]:
    lengths = (24, 64, 104) if toy else (2048, 4096, 6144)
    count, repeats = (3, 1) if toy else (32, 15)
    world = samplers.world(SMALL, 512, draws=False)
    ours, theirs = samplers.Ours(world, lengths[1]), samplers.Growing(world, lengths[1])
    equal(f"ids behind {lengths[1]}", ours.steps(count), theirs.steps(count))
    both = interleaved(partial(ours.steps, count), partial(theirs.steps, count), repeats)
    claim = f"a step behind {lengths[1]:,} ids"
    yield faster(claim, "transformers, DynamicCache", *(s / count * 1e3 for s in both), "CPU ms", 0.1 if toy else 1.5)
    # One group of keys: 2 to 6 MB, in one level of a CPU's caches. It is our slope that is wanted, not memory's.
    world = samplers.world(replace(SMALL, kv_heads=1), 512, draws=False)
    first, two, three, last = (samplers.Ours(world, length) for length in sorted((*lengths, lengths[1])))
    both = interleaved(lambda: (two.steps(count), three.steps(count)), lambda: (first.steps(count), last.steps(count)),
                       repeats)
    yield within(claim, f"ours, mean of {lengths[0]:,} and {lengths[2]:,}", *(s / count / 2 * 1e3 for s in both),
                 "CPU ms", 500 if toy else 10)


def vocabulary(toy: bool) -> Iterable[Row]:
    sizes, side = ((300, 600), 2) if toy else ((50_000, 100_000, 200_000), 8)
    ask = Ask(caption(), (side, side), GUIDANCE)
    runs = [partial(greedy, samplers.world(SMALL, size, 64 if toy else CODES, ((side, side),)), [ask])
            for size in sizes]
    ids = len(runs[0]()[0])
    for (less, before), (more, after) in zip(zip(sizes, runs), zip(sizes[1:], runs[1:])):
        ours, theirs = (s / ids * 1e3 for s in interleaved(after, before, 1 if toy else 15))
        yield within(f"image token, {more:,} ids of text", f"ours, {less:,}", ours, theirs, "CPU ms / id",
                     500 if toy else 10)


def releases(toy: bool) -> Iterable[Row]:
    side = 2 if toy else 8
    peers = [("Emu3ForConditionalGeneration", released.emu3, samplers.image)]
    if not transformers.__version__.startswith("5.17."):  # whose Janus can't draw: a missing argument
        peers.append(("JanusForConditionalGeneration", released.janus, released.draw_janus))
    for name, made, draw in peers:
        yield compare(f"guided image, small {name[:-len('ForConditionalGeneration')]}", name, made(side),
                      Ask(caption(), (side, side), 5), draw, 0.1 if toy else 1, 1 if toy else 5)


def batch(toy: bool) -> Iterable[Row]:
    """Text, images of three sizes and edits: each alone and all at once must write the same."""
    sizes = ((2, 2), (2, 3), (3, 3)) if toy else ((4, 4), (4, 8), (8, 8))
    world = samplers.world(TINY if toy else SMALL, 400, 64 if toy else 1024, sizes)
    asks = [Ask(caption(n), limit=4 if toy else 32) for n in range(4)]
    asks += [Ask(caption(n), sizes[n % 3], GUIDANCE) for n in range(8)]
    asks += [Ask(samplers.edit(world, n, sizes[n % 3]), sizes[n % 3], GUIDANCE) for n in range(4)]

    def one_by_one() -> list[list[int]]:
        return [greedy(world, [ask])[0] for ask in asks]

    alone = one_by_one()
    for n, (mine, other) in enumerate(zip(greedy(world, asks), alone, strict=True)):
        equal(f"ids of request {n} in a batch and alone", mine, other)
    ids = sum(map(len, alone))
    ours, theirs = (s / ids * 1e3 for s in interleaved(partial(greedy, world, asks), one_by_one, 1 if toy else 5))
    yield faster("16 mixed requests at once", "ours, one by one", ours, theirs, "CPU ms / id", 0.1 if toy else 1)


def speculative(toy: bool) -> Iterable[Row]:
    """The same pictures of a model that has learned something, in fewer steps."""
    if toy:
        name, world = "a fresh model", samplers.world(TINY)
        how = replace(samplers.GREEDY, image=Choice(temperature=0.5))
    elif (RUN / RECIPE_FILE).is_file():
        system = open_run(RUN)
        name, world, how = RUN.name, World(system.model, system.layout), system.recipe.sampling
    else:
        print(f"no run in {RUN}: speculative decoding is left out", file=sys.stderr)
        return
    asks = [Ask((Text(caption),), world.layout.config.sizes[0], how.guidance) for caption in CAPTIONS]

    def drawn(window: int) -> list[Request]:
        made = [samplers.requested(ask, replace(how, window=window), n) for n, ask in enumerate(asks)]
        for request in made:
            samplers.run(samplers.decoder(world, 1), [request])
        return made

    one = drawn(1)
    for window in (4, 8):
        for mine, other in zip(drawn(window), one, strict=True):
            equal(f"ids at a window of {window}", mine.ids, other.ids)
        claim, peer = f"an image of {name}, window {window}", "ours, one id at a time"
        steps = (sum(request.steps for request in each) / len(asks) for each in (drawn(window), one))
        yield faster(f"steps of {claim}", peer, *steps, "steps", 0.1 if toy else 1.5)
        both = interleaved(partial(drawn, window), partial(drawn, 1), 1 if toy else 7)
        yield faster(claim, peer, *(s / len(asks) * 1e3 for s in both), "CPU ms", 0.1 if toy else 1)


def rows(toy: bool = False) -> Iterable[Row]:
    for part in (text, images, contexts, vocabulary, releases, batch, speculative):
        yield from part(toy)


if __name__ == "__main__":
    main(rows)
