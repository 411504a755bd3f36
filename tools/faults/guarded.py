"""Numbers that go wrong, ranks that have nothing to learn, ranks that stand still."""

import json
import math
import threading
from dataclasses import replace

import numpy as np

from tools.faults.damage import same_weights
from tools.faults.rank import KINDS, STAGE, STEPS, Kind, Rank
from tools.faults.runs import Fault, Lab, Row, alike, curve, pool
from unimm.checkpoint.folders import final_of
from unimm.checkpoint.read import read_state
from unimm.config.stages import Guards
from unimm.disk import read_sealed
from unimm.status import BAD_INPUT, HUNG, read_status

BAD = 5


def nan_on_one(lab: Lab, zero: int) -> None:
    """Rank 1's loss is NaN in one step: no weight moves on any rank, and the run goes on."""
    folder = lab.folder / f"nan, zero {zero}"
    kind = Kind(zero=zero, stage={"save_every": 1, "keep": STEPS})

    def trouble(rank: int, hooks: Rank) -> None:
        if rank == 1:
            hooks.losses = lambda losses: (
                replace(losses, total=losses.total * math.nan) if hooks.batch == BAD else losses)

    lab.train(folder, kind, trouble)
    before, after, end = (final_of(folder / STAGE, step) for step in (BAD, BAD + 1, STEPS))
    if not same_weights(before, after):
        raise Fault(f"{folder.name}: the NaN moved weights")
    if same_weights(after, end) or read_state(end)["guards"]["skipped"] != 1:
        raise Fault(f"{folder.name}: skipped {read_state(end)['guards']['skipped']} steps, or learned nothing after")
    if not all(map(math.isfinite, curve(folder))) or len(curve(folder)) != STEPS - 1:
        raise Fault(f"{folder.name}: losses {curve(folder)}")
    kept = sorted(path.name for path in (folder / STAGE / "bad-batches").glob("*.json"))
    if kept != [f"step-{BAD + 1:08d}-rank-00001.json"]:
        raise Fault(f"{folder.name}: kept {kept}")


def too_many(lab: Lab) -> None:
    """From one step on rank 1's loss is NaN: the run stops with the batch saved, and goes on once that is mended."""
    folder, kind = lab.folder / "nan for good", KINDS["zero 1"]

    def trouble(rank: int, hooks: Rank) -> None:
        if rank == 1:
            hooks.losses = lambda losses: (
                replace(losses, total=losses.total * math.nan) if hooks.batch >= BAD else losses)

    codes, status = lab.start(folder, kind, trouble).end(), read_status(folder)
    last = folder / STAGE / "bad-batches" / f"step-{BAD + Guards().skips_in_row:08d}-rank-00001.json"
    if set(codes) != {BAD_INPUT} or status["state"] != "failed" or str(last) not in status["message"]:
        raise Fault(f"{folder.name}: exit codes {codes}, {status}")
    if not json.loads(last.read_text())["why"] or not last.with_suffix(".safetensors").stat().st_size:
        raise Fault(f"{folder.name}: the batch was not saved")
    lab.train(folder, kind)
    alike(lab.undisturbed(kind), folder)


def spike(lab: Lab, images: bool, zero: int) -> None:
    """One batch makes the loss leap: back to the checkpoint before it, and on as if it had never been there."""
    limits = Guards(late_seconds=0, spike=10, spike_window=8, rollbacks=1, rollback_batches=1)
    kind = Kind(images=images, zero=zero, stage={"guards": limits})
    ends = []
    for name in ("leapt", "never there"):
        def trouble(rank: int, hooks: Rank, name=name) -> None:
            if name == "leapt":
                hooks.losses = lambda losses: (
                    replace(losses, total=losses.total * 1000) if hooks.batch == 9 else losses)
            else:
                hooks.without = {9}

        folder = lab.folder / f"spike, {kind}, {name}"
        lab.train(folder, kind, trouble)
        end = final_of(folder / STAGE, STEPS)
        ends.append(({path.name: path.read_bytes() for path in end.glob("*.safetensors")}, curve(folder)))
        rolled = read_sealed(folder / STAGE / "rollbacks.json")
        if len(rolled["condemned"] if rolled else []) != (name == "leapt"):
            raise Fault(f"{folder.name}: {rolled}")
    apart = [name for name in ends[0][0] if ends[0][0][name] != ends[1][0].get(name)]
    if apart or ends[0][1] != ends[1][1]:
        raise Fault(f"spike, {kind}: after going back it is other than without the batch in {apart or 'its loss'}")


def no_images(lab: Lab) -> None:
    """At odd steps rank 1 has text alone: under ZeRO-3 nothing hangs, and the curve is that of ZeRO 0."""
    def trouble(rank: int, hooks: Rank) -> None:
        def text_alone(batch):
            ids, targets = (np.where(x >= 400, 5, x) for x in (batch.ids, batch.targets))
            return replace(batch, ids=ids, targets=targets, image=np.zeros_like(batch.image), slots=())

        if rank == 1:
            hooks.change = lambda batch: text_alone(batch) if hooks.batch % 2 else batch

    curves = []
    for zero in (0, 3):
        lab.train(lab.folder / f"text alone, zero {zero}", Kind(zero=zero), trouble)
        curves.append(curve(lab.folder / f"text alone, zero {zero}"))
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    if not apart <= 1e-5:
        raise Fault(f"a rank without images: ZeRO 0 and 3 are {apart:.1e} apart")


def stalled(lab: Lab) -> None:
    """Rank 1 stands still: the watchdog names it and the place, ends all with code 76; a new start goes on."""
    folder, calm = lab.folder / "stalled", KINDS["zero 3"]
    watched = replace(calm, stage=calm.stage | {"guards": Guards(late_seconds=4, end_when_late=True)})

    def trouble(rank: int, hooks: Rank) -> None:
        if rank == 1:
            hooks.before_batch = lambda n: threading.Event().wait() if n == BAD else None

    attempt = lab.start(folder, watched, trouble)
    codes, said = attempt.end(), attempt.logs[0].read_text()
    named = [line for line in said.splitlines() if "rank 1" in line and f"step {BAD + 1}" in line and "data" in line]
    if HUNG not in codes or 0 in codes or not named:
        raise Fault(f"stalled: exit codes {codes} ({attempt.said()})")
    if read_status(folder)["state"] != "resume":
        raise Fault(f"stalled: {read_status(folder)}")
    lab.train(folder, calm)
    alike(lab.undisturbed(calm), folder)


def numbers(lab: Lab, width: int, count: int | None = None) -> Row:
    acts = {
        "NaN on one rank skipped, ZeRO 2": lambda: nan_on_one(lab, 2),
        "spike rolls back, codebook too": lambda: spike(lab, True, 0),
        "a rank without images, ZeRO 3": lambda: no_images(lab),
        "a stalled rank named": lambda: stalled(lab),
        "too many stop with the batch saved": lambda: too_many(lab),
        "NaN on one rank skipped, ZeRO 0": lambda: nan_on_one(lab, 0),
        "NaN on one rank skipped, ZeRO 3": lambda: nan_on_one(lab, 3),
        "spike rolls back, ZeRO 0": lambda: spike(lab, False, 0),
        "spike rolls back, ZeRO 3": lambda: spike(lab, False, 3),
    }
    lab.undisturbed(KINDS["zero 3"])
    lab.undisturbed(KINDS["zero 1"])
    acts = dict(list(acts.items())[:count])
    found = pool(acts.values(), lab.folder / "numbers", width)
    wrong = [f"{name}: {each}" for name, each in zip(acts, found, strict=True) if isinstance(each, Fault)]
    return Row(f"guards, 2 ranks: {', '.join(acts)}", "as docs/exit-codes.md says; what goes on does so bit for bit",
               f"{len(acts) - len(wrong)} of {len(acts)}" + (f"; wrong: {'; '.join(wrong)}" if wrong else ""),
               not wrong)
