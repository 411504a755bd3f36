"""A run killed and continued on other hardware: other world sizes, other ZeRO stages."""

import shutil
from pathlib import Path

from tools.faults.rank import Kind
from tools.faults.runs import Fault, Lab, Row, curve, lost_or_repeated, pool, samples

MOVES = (
    (Kind(world=2, zero=0), Kind(world=1, zero=0)),
    (Kind(world=1, zero=0), Kind(world=2, zero=0)),
    (Kind(world=2, zero=2), Kind(world=2, zero=3)),
    (Kind(world=2, zero=3), Kind(world=1, zero=0, engine="plain")),
    (Kind(world=1, zero=0, engine="plain"), Kind(world=2, zero=1)),
    (Kind(world=2, zero=1), Kind(world=1, zero=2)),
    (Kind(world=2, zero=3), Kind(world=2, zero=0)),
    (Kind(world=1, zero=3), Kind(world=2, zero=2)),
    (Kind(world=4, zero=2), Kind(world=2, zero=3)),
    (Kind(world=2, zero=3), Kind(world=4, zero=1)),
)


def moves(lab: Lab, count: int, width: int) -> Row:
    """Save at step 4, continue elsewhere; against the run that stayed."""
    chosen = MOVES[:count]
    for before, _ in chosen:
        lab.undisturbed(before)
    found = pool([lambda n=n: moved(lab, lab.folder / f"move-{n}", *chosen[n]) for n in range(len(chosen))],
                 lab.folder / "moves", width)
    wrong = [str(each) for each in found if isinstance(each, Fault)]
    apart = max((each for each in found if not isinstance(each, Fault)), default=0.0)
    told = ", ".join(f"{a.world}/{a.zero} -> {b.world}/{b.zero}" for a, b in chosen)
    return Row(f"resume at other ranks/ZeRO: {told}", "same samples in the same order; loss within 1e-5",
               f"{len(chosen) - len(wrong)} of {len(chosen)} did; loss at most {apart:.1e} apart"
               + (f"; first: {wrong[0]}" if wrong else ""), not wrong)


def moved(lab: Lab, folder: Path, before: Kind, after: Kind) -> float:
    """How far the losses are from those of the run that stayed."""
    lab.started(before, folder)
    lab.train(folder, after)
    stayed = lab.undisturbed(before)
    if samples(folder) != samples(stayed) or lost_or_repeated(folder) != (0, 0):
        raise Fault(f"{folder.name}, {before} -> {after}: other samples, or in another order")
    one, two = curve(stayed), curve(folder)
    apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
    if not apart <= 1e-5:
        raise Fault(f"{folder.name}, {before} -> {after}: the loss is {apart:.2e} apart")
    shutil.rmtree(folder)
    return apart
