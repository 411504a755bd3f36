"""Signals: to one rank at two moments of a step, and through torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.faults.rank import KINDS, STAGE, Kind, Rank
from tools.faults.runs import PATIENCE, Fault, Lab, Row, alike, pool
from unimm.checkpoint.folders import faults
from unimm.checkpoint.read import read_state
from unimm.status import code_of, read_status

ROOT = Path(__file__).parents[2]
BATCH = 5
"""The signal comes in step BATCH + 1."""
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75}


def saved(folder: Path, number: signal.Signals, latest: int) -> None:
    """Raises Fault unless status.json and the checkpoint are as docs/exit-codes.md says."""
    status = read_status(folder)
    if (status["state"], status["code"], code_of(status)) != ("resume", CODES[number], 75):
        raise Fault(f"{folder.name}: status.json says {status}")
    checkpoint = Path(status["checkpoint"])
    if faults(checkpoint) or not BATCH + 1 <= read_state(checkpoint)["step"] <= latest:
        raise Fault(f"{folder.name}: signalled in step {BATCH + 1}, saved {checkpoint.name}")


def to_one_rank(lab: Lab, kind: Kind, number: signal.Signals, moment: str) -> None:
    """One rank gets it before the ranks agree on whether to stop, or after; then the next step does."""
    folder = lab.folder / f"signal {number.name}, {moment}, {kind}"

    def signalled(rank: int, hooks: Rank) -> None:
        def send(n: int, value=None):
            if n == BATCH:
                os.kill(os.getpid(), number)
            return value

        if rank == kind.world - 1 and moment == "data":
            hooks.before_batch = send
        elif rank == kind.world - 1:
            hooks.losses = lambda losses: send(hooks.batch, losses)

    codes = lab.start(folder, kind, signalled).end()
    if set(codes) != {CODES[number]}:
        raise Fault(f"{folder.name}: exit codes {codes}")
    saved(folder, number, BATCH + 1 + (moment != "data"))
    lab.train(folder, kind)
    alike(lab.undisturbed(kind), folder)


def through_torchrun(lab: Lab, number: signal.Signals) -> None:
    """To the launcher, which passes it on and hides the code behind a 1."""
    folder, kind = lab.folder / f"torchrun {number.name}", "zero 2"
    log = folder.with_name(folder.name + ".log")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
               "tools.faults.rank", str(lab.base), str(folder), kind, str(BATCH), number.name]
    with open(log, "w") as out:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (folder / "waits").exists():
            if launcher.poll() is not None or time.monotonic() > deadline:
                raise Fault(f"{folder.name}: never got to step {BATCH + 1} ({log.read_text()[-800:]})")
            time.sleep(0.05)
        launcher.send_signal(number)
        code = launcher.wait(PATIENCE)
    finally:
        launcher.kill()
    if code == 0:
        raise Fault(f"{folder.name}: torchrun ended with 0")
    saved(folder, number, BATCH + 1)
    lab.train(folder, KINDS[kind])
    alike(lab.undisturbed(KINDS[kind]), folder)


def signals(lab: Lab, width: int, count: int | None = None) -> Row:
    acts = {}
    for kind in (KINDS["zero 3"], KINDS["one rank"], KINDS["zero 0"]):
        for number in CODES:
            for moment in ("data", "forward"):
                acts[f"{number.name} {moment} {kind}"] = lambda kind=kind, number=number, moment=moment: to_one_rank(
                    lab, kind, number, moment)
        lab.undisturbed(kind)
    torchrun = {f"{number.name} through torchrun": lambda number=number: through_torchrun(lab, number)
                for number in CODES}
    lab.undisturbed(KINDS["zero 2"])
    chosen = dict([*list(torchrun.items())[:1 if count else None], *list(acts.items())[:count and count - 1]])
    found = pool(chosen.values(), lab.folder / "signals", width)
    wrong = [f"{name}: {each}" for name, each in zip(chosen, found, strict=True) if isinstance(each, Fault)]
    return Row(f"SIGTERM and SIGUSR1, {len(chosen)} times: to one rank of 2, to a lone process, to torchrun; before "
               "the ranks agree on a step and after",
               f"saved within one step (that under way, at most one more); exit code 143 or 75 and {STAGE}'s "
               "status.json as docs/exit-codes.md says; continued bit for bit",
               f"{len(chosen) - len(wrong)} of {len(chosen)}" + (f"; wrong: {'; '.join(wrong)}" if wrong else ""),
               not wrong)
