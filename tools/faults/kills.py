"""SIGKILL: of any rank at any moment, and at every change that saving makes on disk."""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tools.faults.rank import KINDS, SAVE_EVERY, STEPS, Kind, Rank
from tools.faults.runs import Fault, Lab, Row, alike, lost_or_repeated, pool

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
NOTHING_LOST = "parameters, optimizer, random state and loss bit-identical; 0 samples lost, 0 repeated"


def random_kills(lab: Lab, count: int, width: int) -> Row:
    """`count` runs of all kinds; every fifth is killed three times before it may end."""
    kinds = list(KINDS.values())
    for kind in kinds:
        lab.undisturbed(kind)
    acts = [lambda n=n: killed_at_random(lab, kinds[n % len(kinds)], n) for n in range(count)]
    found = pool(acts, lab.folder / "kills", width)
    wrong = [str(each) for each in found if isinstance(each, Fault)]
    kills = [kill for each in found if not isinstance(each, Fault) for kill in each]
    where = Counter(f"rank {rank}" for rank, _ in kills)
    told = ", ".join(f"{n} of {name}" for name, n in sorted(where.items()))
    return Row(f"kill -9 of any rank at a random moment: {count} runs, {len(kinds)} kinds (ZeRO 0-3, 1 and 2 ranks)",
               f"all resume; {NOTHING_LOST}",
               f"{count - len(wrong)} of {count} did, after {len(kills)} kills ({told}), in steps "
               f"{min(s for _, s in kills)} to {max(s for _, s in kills)}" + _first(wrong), not wrong)


def killed_at_random(lab: Lab, kind: Kind, seed: int) -> list[tuple[int, int]]:
    """Kill, continue, compare; the (rank, step) of each kill."""
    draw, folder = random.Random(seed), lab.folder / f"kill-{seed}"
    kills: list[tuple[int, int]] = []
    wanted = 3 if seed % 5 == 0 else 1
    while len(kills) < wanted:
        victim = draw.randrange(kind.world)
        attempt = lab.start(folder, kind, who=victim)
        # A batch from which on, and a time after it that reaches over a step or two and what is saved meanwhile.
        begun = attempt.until(draw.randrange(-1, STEPS))
        time.sleep(draw.random() * draw.choice((0.01, 0.1, 0.5)))
        attempt.kill(victim)
        if draw.random() < 0.5:  # as torchrun does with the others
            for rank in range(kind.world):
                attempt.kill(rank, signal.SIGTERM)
        codes = attempt.end()
        if -signal.SIGKILL in codes:
            kills.append((victim, begun + 1))
        elif not any(codes):  # it was done before: begin anew
            shutil.rmtree(folder)
            kills.clear()
    lab.train(folder, kind)
    alike(lab.undisturbed(kind), folder)
    if not kind.images and lost_or_repeated(folder) != (0, 0):
        raise Fault(f"{folder.name}: lost and repeated {lost_or_repeated(folder)}")
    shutil.rmtree(folder)
    return kills


def points(folder: Path, at: Callable[[str], None]) -> None:
    """Call `at(name)` before every change that this process makes to checkpoints in `folder`, from now on."""
    seen: Counter[str] = Counter()

    def change(name: str) -> None:
        seen[name] += 1
        at(name if seen[name] == 1 else f"{name} #{seen[name]}")

    def inside(path) -> bool:
        return not os.path.isabs(path) or (str(path).startswith(str(folder)) and "step-" in str(path))

    def named(path) -> str:
        return os.path.relpath(path, folder) if os.path.isabs(path) else str(path)

    def audit(event, args):
        if event == "open" and isinstance(args[0], str) and os.path.isabs(args[0]) and inside(args[0]) \
                and args[2] & (os.O_WRONLY | os.O_RDWR):
            change(f"open {named(args[0])}")
        elif event in CHANGES and inside(args[0]):
            change(f"{event.removeprefix('os.')} {named(args[0])}")

    def fsync(handle, real=os.fsync):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if inside(path) or path == str(folder):
            change(f"sync {named(path)}")
        real(handle)

    sys.addaudithook(audit)
    os.fsync = fsync


def kills_while_saving(lab: Lab, every: int, width: int) -> Row:
    """A kill before each change on disk of the second save, which also removes the first; each `every`-th alone."""
    kinds = [Kind(zero=3, stage={"keep": 1}), Kind(zero=0, stage={"keep": 1, "ema": 0.9}),
             Kind(world=1, engine="plain", stage={"keep": 1})]
    places = [place for kind in kinds for place in places_of(lab, kind)]
    chosen = places[::every]
    acts = [lambda n=n, place=place: killed_at(lab, n, *place) for n, place in enumerate(chosen)]
    found = pool(acts, lab.folder / "points", width)
    wrong = [str(each) for each in found if isinstance(each, Fault)]
    old = sum(each == SAVE_EVERY for each in found)
    return Row(f"kill -9 at every named point of a checkpoint write, in training: {len(chosen)} points of "
               f"{len(kinds)} kinds",
               f"at least {20 if every == 1 else len(chosen)} points, all resume; {NOTHING_LOST}",
               f"{len(chosen) - len(wrong)} of {len(chosen)} did; {old} went on from the old checkpoint, "
               f"{len(chosen) - len(wrong) - old} from the new one" + _first(wrong),
               not wrong and (every > 1 or len(chosen) >= 20))


def places_of(lab: Lab, kind: Kind) -> list[tuple[Kind, int, str]]:
    """Every change that the second save makes, by rank and name, as an undisturbed run makes them."""
    folder = lab.undisturbed(kind)
    dry = lab.folder / f"dry, world {kind.world}, zero {kind.zero}"

    def noting(rank: int, hooks: Rank) -> None:
        log = os.open(dry / f"points-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        points(dry / "stage", lambda name: os.write(log, f"{name}\n".encode()))

    lab.train(dry, kind, noting)
    alike(folder, dry)
    second, third = (f"step-{step:08d}" for step in (2 * SAVE_EVERY, 3 * SAVE_EVERY))
    places = []
    for rank in range(kind.world):
        path = dry / f"points-{rank}"
        names = path.read_text().splitlines()
        first = next((n for n, name in enumerate(names) if second in name), len(names))
        last = next((n for n, name in enumerate(names) if third in name), len(names))
        places += [(kind, rank, name) for name in names[first:last]]
    return places


def killed_at(lab: Lab, number: int, kind: Kind, victim: int, place: str) -> int:
    """Kill there, continue, compare; the step that it went on from."""
    folder = lab.folder / f"point-{number}"

    def dying(rank: int, hooks: Rank) -> None:
        if rank == victim:
            points(folder / "stage", lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == place else None)

    attempt = lab.start(folder, kind, dying)
    codes = attempt.end()
    if codes[victim] != -signal.SIGKILL:
        raise Fault(f"{place}: exit codes {codes} where rank {victim} was to be killed ({attempt.said()})")
    lab.train(folder, kind)
    alike(lab.undisturbed(kind), folder)
    if lost_or_repeated(folder) != (0, 0):
        raise Fault(f"{place}: lost and repeated {lost_or_repeated(folder)}")
    began = next(line for line in lab.logs(folder)[1].read_text().splitlines() if "continuing after step" in line)
    shutil.rmtree(folder)
    return int(began.split("continuing after step ")[1].split()[0])


def _first(wrong: list[str]) -> str:
    return f"; first: {wrong[0]}" if wrong else ""
