"""A row of the benchmark table, and what every module that makes rows needs.

A module of tools/bench has

    def rows(toy: bool = False) -> Iterable[Row]:           `toy`: the same path in seconds, for tests
        equal("what is compared", ours, theirs, tolerance)      before anything is timed
        yield faster("claim", "peer", *interleaved(ours, theirs), "s", at_least=1.0)

    if __name__ == "__main__":
        main(rows)

and needs no other mention: `python -m tools.bench` starts every file of the folder as a process of its own.
Time is CPU time of the process and of those it has waited for, in seconds: on a shared machine a wall clock measures
the neighbours. The two sides alternate and the least of several counts, for load only ever adds.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata

NAMED = ("torch", "transformers", "deepspeed", "accelerate", "numpy")


@dataclass(frozen=True)
class Row:
    """One claim: our figure beside that of a named peer, in `unit`; `wanted` says what `ratio` must be."""

    claim: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    wanted: str
    holds: bool


class Unequal(AssertionError):
    """The two sides do not compute the same thing, so that their times can't be compared."""


def faster(claim: str, peer: str, ours: float, theirs: float, unit: str, at_least: float) -> Row:
    """Less is better (seconds, bytes): theirs / ours must be `at_least`."""
    ratio = theirs / ours if ours else math.inf
    return Row(claim, peer, ours, theirs, unit, ratio, f">= {at_least:g}x", bool(ratio >= at_least))


def at_most(claim: str, peer: str, ours: float, theirs: float, unit: str, limit: float) -> Row:
    """What is given up for something else: ours / theirs must stay below `limit`."""
    ratio = ours / theirs if theirs else math.inf
    return Row(claim, peer, ours, theirs, unit, ratio, f"<= {limit:g}x", bool(ratio <= limit))


def more(claim: str, peer: str, ours: float, theirs: float, unit: str, at_least: float) -> Row:
    """More is better (tokens per second): ours / theirs must be `at_least`."""
    ratio = ours / theirs if theirs else math.inf
    return Row(claim, peer, ours, theirs, unit, ratio, f">= {at_least:g}x", bool(ratio >= at_least))


def within(claim: str, peer: str, ours: float, theirs: float, unit: str, percent: float) -> Row:
    """The two figures must agree to `percent` of theirs."""
    ratio = ours / theirs if theirs else math.inf
    return Row(claim, peer, ours, theirs, unit, ratio, f"within {percent:g} %", bool(abs(ratio - 1) * 100 <= percent))


def equal(what: str, ours, theirs, tolerance: float = 0.0) -> None:
    """Raise Unequal unless the two (tensors, arrays or sequences of numbers) differ by at most `tolerance` anywhere."""
    import torch

    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (ours, theirs))
    if a.shape != b.shape:
        raise Unequal(f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    apart = float((a - b).abs().max()) if a.numel() else 0.0
    if not apart <= tolerance:  # a NaN is never equal
        raise Unequal(f"{what}: {apart:.3g} apart, {tolerance:g} allowed")


def cpu_seconds() -> float:
    """CPU time so far of this process, all threads, and of the processes that it has started and waited for."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def interleaved(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 7) -> tuple[float, float]:
    """CPU seconds of one call of each: alternating, the least of `repeats`, after one call of each for warming up."""
    ours()
    theirs()
    best = [math.inf, math.inf]
    for _ in range(repeats):
        for side, run in enumerate((ours, theirs)):
            gc.collect()
            began = cpu_seconds()
            run()
            best[side] = min(best[side], cpu_seconds() - began)
    return best[0], best[1]


def alone(run: Callable[[], object]):
    """What `run` gives (something that pickles), in a forked child: what it starts or fills is gone with the child.

    The parent must not have computed a gradient or joined a process group before, for those do not survive a fork.
    Raises RuntimeError where the child dies.
    """
    return in_turn([lambda turn: run()])[0]


class Turn:
    """One of several processes' right to run, which goes round among those that are not done."""

    def __init__(self, mine: int, gates: list, done):
        self.mine, self.gates, self.done = mine, gates, done

    def take(self) -> None:
        if not self.gates[self.mine].acquire(timeout=600):
            raise RuntimeError("waited ten minutes for the other side's turn to end")

    def give(self) -> None:
        order = [(self.mine + n) % len(self.gates) for n in range(1, len(self.gates) + 1)]
        self.gates[next((n for n in order if not self.done[n]), self.mine)].release()


def in_turn(runs: list[Callable[[Turn], object]]) -> list:
    """What each of `runs` gives, every one in a forked child as `alone` has it, all alive at once.

    One gives its turn away and takes it again wherever two measurements should lie side by side in time.
    """
    context = multiprocessing.get_context("fork")
    gates, done = [context.Semaphore(int(n == 0)) for n in range(len(runs))], context.Array("b", len(runs))
    started = []

    def child(run, turn: Turn, there) -> None:
        there.send(run(turn))
        there.close()
        done[turn.mine] = 1
        turn.give()
        sys.stdout.flush()
        os._exit(0)  # past the interpreter's teardown, in which gloo may abort

    for n, run in enumerate(runs):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(run, Turn(n, gates, done), there))
        process.start()
        there.close()
        started.append((process, here))
    try:
        return [here.recv() for _, here in started]
    except EOFError:
        for process, _ in started:
            process.terminate()
        raise RuntimeError("the child died before it gave a result; what it said is above") from None
    finally:
        for process, _ in started:
            process.join()


def machine() -> dict[str, str | int]:
    """What a figure depends on, without the machine's name."""
    found = {"date": date.today().isoformat(), "processor": platform.machine(), "cores": os.cpu_count() or 0,
             "system": platform.system(), "python": platform.python_version()}
    present = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    return found | {name: present[name] for name in NAMED if name in present}


def table(found: Iterable[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| claim | ours | theirs | unit | peer | ratio | wanted | |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {r.claim} | {r.ours:.4g} | {r.theirs:.4g} | {r.unit} | {r.peer} | {r.ratio:.2f}x | {r.wanted} | "
              f"{'holds' if r.holds else 'MISSED'} |" for r in found]
    return "\n".join(lines)


def main(rows: Callable[[bool], Iterable[Row]]) -> None:
    """What `python -m tools.bench.NAME` does: one thread, the rows as a table, or as JSON for `tools.bench`."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--toy", action="store_true", help="the same path in seconds; the figures mean nothing")
    parser.add_argument("--json", metavar="FILE", help="write the rows there instead of printing a table")
    given = parser.parse_args()
    found = []
    for row in rows(given.toy):
        found.append(row)
        print(f"{row.claim}: {row.ratio:.2f}x {row.peer}", file=sys.stderr, flush=True)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in found], file, indent=1)
    else:
        print(table(found))
