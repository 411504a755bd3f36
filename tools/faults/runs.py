"""Runs as real processes: started, killed, continued, and compared with one that nothing happened to.

    lab = Lab(folder)                      the small system, trained and encoded once
    attempt = lab.start(folder, kind)      one fork per rank
    attempt.told()                         the number of the batch that a rank has come to
    attempt.end()                          the exit codes, -9 for SIGKILL
    differences(lab.undisturbed(kind), folder)    nothing where the two runs ended alike
"""

import json
import os
import pickle
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.faults.rank import LM, SAVE_EVERY, STAGE, STEPS, Kind, Rank, forked_rank, small
from unimm.checkpoint.folders import final_of
from unimm.checkpoint.read import read_state
from unimm.pipeline import encode_run, train_run

PATIENCE = 240
"""Seconds after which a run counts as hung: two orders of magnitude above what it takes on an idle machine."""


class Fault(AssertionError):
    """A claim that does not hold; the message says where."""


@dataclass(frozen=True)
class Row:
    """One claim of the table."""

    claim: str
    wanted: str
    found: str
    holds: bool
    seconds: float = 0.0


def preload() -> None:
    """Import now what every rank would import for itself: seven of the eight seconds of a start."""
    from unimm.train.engine import _import_deepspeed

    _import_deepspeed()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (decorated by torch.compile: brings inductor)
    import deepspeed.runtime.zero.stage3  # noqa: F401
    import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
    import grain  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    import vector_quantize_pytorch  # noqa: F401
    from grain.experimental import WindowShuffleMapDataset  # noqa: F401


def in_fork(act: Callable[[], None]) -> int:
    """The exit code of `act` in a process of its own, so that no thread or gradient of it is left here."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        act()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Attempt:
    """One start of a run; `listens` is a pipe on which rank `who` says each batch it begins."""

    def __init__(self, lab: "Lab", folder: Path, kind: Kind, trouble: Callable[[int, Rank], None], who: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.kind = folder, kind
        logs = folder.with_name(f"{folder.name} logs")  # beside it: its disk may be the one that fails
        logs.mkdir(exist_ok=True)
        number = len(list(logs.glob("rank-0.*.log")))
        self.logs = [logs / f"rank-{rank}.{number}.log" for rank in range(kind.world)]
        self.pipe, speaks = os.pipe()
        self.pids = []
        sys.stdout.flush()
        for rank in range(kind.world):
            pid = os.fork()
            if pid == 0:
                _redirect(self.logs[rank])
                os.close(self.pipe)

                def prepared(hooks: Rank, rank=rank):
                    if rank == who:
                        hooks.before_batch = lambda n: os.write(speaks, bytes([n]))
                    trouble(rank, hooks)

                forked_rank(lab.base, folder, kind, prepared, rank, logs / f"store-{number}")
            self.pids.append(pid)
        os.close(speaks)
        self.codes: list[int | None] = [None] * kind.world

    def until(self, batch: int) -> int:
        """Wait until that batch has begun; the newest that has. -1 where the rank is gone without a word."""
        newest, deadline = -1, time.monotonic() + PATIENCE
        while newest < batch:
            if not select.select([self.pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Fault(f"{self.folder.name}: batch {batch} did not begin within {PATIENCE} s ({self.said()})")
            heard = os.read(self.pipe, 4096)
            if not heard:
                return newest
            newest = heard[-1]
        return newest

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        if not self._gone(rank):
            os.kill(self.pids[rank], number)

    def _gone(self, rank: int) -> bool:
        if self.codes[rank] is None:
            pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
            self.codes[rank] = os.waitstatus_to_exitcode(status) if pid else None
        return self.codes[rank] is not None

    def end(self) -> list[int]:
        """Exit codes of all ranks. Raises Fault, and kills them, where one is still there after PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while not all([self._gone(rank) for rank in range(self.kind.world)]):
            if time.monotonic() > deadline:
                for rank in range(self.kind.world):
                    self.kill(rank)
                raise Fault(f"{self.folder.name}: hung, exit codes {self.codes} ({self.said()})")
            time.sleep(0.01)
        os.close(self.pipe)
        return self.codes

    def said(self) -> str:
        """The end of what the ranks said, in one line."""
        return " | ".join(log.read_text(errors="replace")[-300:].replace("\n", " / ") for log in self.logs
                          if log.exists())


def _redirect(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


class Lab:
    """The system that all runs train, and the undisturbed run of every kind."""

    def __init__(self, folder: Path):
        self.folder, self.base = folder, folder / "base"
        log = folder / "base.log"

        def prepare() -> None:
            _redirect(log)
            train_run(small(), self.base, last="tokenizer")
            encode_run(small(), self.base, stages=[LM])

        if in_fork(prepare):
            raise Fault(f"the small system was not made: {log.read_text()[-2000:]}")

    @staticmethod
    def logs(folder: Path) -> list[Path]:
        """What rank 0 said, start by start."""
        found = folder.with_name(f"{folder.name} logs").glob("rank-0.*.log")
        return sorted(found, key=lambda path: int(path.suffixes[-2][1:]))

    def start(self, folder: Path, kind: Kind, trouble: Callable[[int, Rank], None] = lambda rank, hooks: None,
              who: int = 0) -> Attempt:
        return Attempt(self, folder, kind, trouble, who)

    def train(self, folder: Path, kind: Kind, trouble: Callable[[int, Rank], None] = lambda rank, hooks: None) -> None:
        """A run, or what is left of one, to its end. Raises Fault where it does not get there."""
        attempt = self.start(folder, kind, trouble)
        codes = attempt.end()
        if any(codes):
            raise Fault(f"{folder.name}: exit codes {codes} ({attempt.said()})")

    def undisturbed(self, kind: Kind) -> Path:
        """A run of that kind from its first step to its last; made at the first call."""
        name = "undisturbed, " + ", ".join(f"{k} {v}" for k, v in vars(kind).items() if k != "stage")
        name += "".join(f", {k} {v}" for k, v in sorted(kind.stage.items()))
        folder = self.folder / name.replace("/", " ")[:180]
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self.train(folder, kind)
            (folder / "whole").touch()
        return folder

    def started(self, kind: Kind, folder: Path, step: int = SAVE_EVERY) -> None:
        """A run's folder as a kill soon after the checkpoint of `step` leaves it."""
        def dying(rank: int, hooks: Rank) -> None:
            def at(n: int) -> None:
                while n == step + 1 and not final_of(folder / STAGE, step).is_dir():
                    time.sleep(0.01)
                if n == step + 1:
                    os.kill(os.getpid(), signal.SIGKILL)

            hooks.before_batch = at

        self.start(folder, kind, dying).end()
        if not final_of(folder / STAGE, step).is_dir():
            raise Fault(f"{folder.name}: no checkpoint of step {step}")


def learned(folder: Path) -> dict[tuple[int, int], dict[int, dict]]:
    """(world, rank) -> batch number -> {"rows", "random"}: what entered the steps that count.

    A run that goes back to a batch number takes the earlier attempt at it, and all after it, out of the count.
    """
    found: dict[tuple[int, int], dict[int, dict]] = {}
    for path in sorted(folder.glob("notes/learned-*.jsonl")):
        _, world, rank = path.stem.split("-")
        counted = found.setdefault((int(world), int(rank)), {})
        for line in path.read_text().splitlines():
            note = json.loads(line)
            if "rows" in note:
                for later in [n for n in counted if n >= note["n"]]:
                    del counted[later]
                counted[note["n"]] = {"rows": note["rows"], "random": []}
            else:
                counted[note["n"]]["random"].append(note["random"])
    return found


def samples(folder: Path, steps: int = STEPS) -> list[list]:
    """For each step the samples of its rows over all ranks, in order. Raises Fault where a step is missing."""
    found = learned(folder)
    counted: dict[int, list] = {}
    # A run that moved to another number of ranks left off where the later one, which began later, takes up.
    for world in sorted({world for world, _ in found}, key=lambda world: min(found[world, 0])):
        own = [found[world, rank] for rank in range(world)]
        counted = {n: rows for n, rows in counted.items() if n < min(own[0])}
        counted |= {n: [row for batches in own for row in batches[n]["rows"]] for n in own[0]
                    if all(n in batches for batches in own)}
    if sorted(counted) != list(range(steps)):
        raise Fault(f"{folder.name}: the batches {sorted(counted)} entered steps that count")
    return [counted[n] for n in range(steps)]


def lost_or_repeated(folder: Path, steps: int = STEPS) -> tuple[int, int]:
    """Samples of the stream that no counted step learned from though they were given out, and those twice in it."""
    times = Counter(index for step in samples(folder, steps) for row in step for index in row)
    stream = read_state(final_of(folder / STAGE, steps))["stream"]["inner"]
    due: set[int] = set()
    for lane, (following, _, *waiting) in enumerate(stream["lanes"]):
        due |= set(range(lane, following, stream["rows"])) - set(waiting)
    return len(due - times.keys()), sum(times.values()) - len(times) + len(times.keys() - due)


def curve(folder: Path) -> list[float]:
    lines = (folder / STAGE / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


TIMED = {"seconds", "seconds/data", "seconds/save", "seconds/preview", "tokens_per_second", "mfu"}


def differences(wanted: Path, found: Path, steps: int = STEPS) -> list[str]:
    """In what two runs ended apart, bit for bit."""
    one, two = (final_of(folder / STAGE, steps) for folder in (wanted, found))
    if not two.is_dir():
        return [f"no {two.name}"]
    apart = [path.name for path in sorted(one.glob("*.safetensors"))
             if not (two / path.name).is_file() or path.read_bytes() != (two / path.name).read_bytes()]
    states = [read_state(path) for path in (one, two)]
    states = [{k: state[k] for k in ("stream", "updates", "guards")} | {"meter": state["meter"] | {"seconds": 0}}
              for state in states]
    apart += [f"state.json: {key}" for key in states[0] if states[0][key] != states[1].get(key)]
    lines = [[{k: v for k, v in json.loads(line).items() if k not in TIMED}
              for line in (folder / STAGE / "metrics.jsonl").read_text().splitlines()] for folder in (wanted, found)]
    apart += ["metrics.jsonl"] if lines[0] != lines[1] else []
    apart += ["samples"] if samples(wanted, steps) != samples(found, steps) else []
    notes = [learned(folder) for folder in (wanted, found)]
    apart += ["random state"] if notes[0] != notes[1] else []
    return apart


def alike(wanted: Path, found: Path) -> None:
    """Raises Fault unless the two ended alike."""
    if apart := differences(wanted, found):
        raise Fault(f"{found.name}: other than the undisturbed run in {', '.join(apart)}")


def pool(acts: Iterable[Callable[[], object]], folder: Path, width: int) -> list:
    """What each act gives, or the Fault that it raises; each in a fork of its own, `width` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    acts = list(acts)
    running: dict[int, int] = {}
    started = 0
    while started < len(acts) or running:
        while started < len(acts) and len(running) < width:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                _give(acts[started], folder / f"{started}.pickle")
            running[pid] = started
            started += 1
        pid, _ = os.wait()
        running.pop(pid, None)
    return [pickle.loads((folder / f"{n}.pickle").read_bytes()) for n in range(len(acts))]


def _give(act: Callable[[], object], path: Path) -> None:
    try:
        found = act()
    except Exception as error:
        import traceback

        found = error if isinstance(error, Fault) else Fault(traceback.format_exc()[-1500:])
    path.write_bytes(pickle.dumps(found))
    os._exit(0)
