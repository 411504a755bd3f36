"""Many trainings in turn in one process (or one per rank): the tests start it once and read what it found.

    python engine_runs.py FOLDER STEPS < RUNS.json > ...

RUNS is a list of {"name", "module", "stage": changes of the toy stage, "steps": how far, "engine"}; a run whose
folder has a checkpoint continues it. found-RANK.json holds each run's losses.
"""

import json
import sys
from pathlib import Path

from train_toys import Regression, Stream, ToyLM, curve, stage

from unimm.config.stages import AdamW, Muon, Schedule
from unimm.train import ranks
from unimm.train.loop import Work, run_stage

OPTIMIZERS = {"adamw": AdamW(lr=0.01, clip=0.5, weight_decay=0.1), "muon": Muon(clip=0.5, weight_decay=0.1)}


def build(changes: dict):
    usual = {"steps": 20, "schedule": Schedule(warmup=0.1, anneal=0.5), "preview_every": 100, "save_every": 100}
    optimizer = OPTIMIZERS[changes.pop("optimizer", "adamw")]
    return stage(**(usual | {"optimizer": optimizer} | changes))


def run(folder: Path, name: str, module: str, changes: dict, engine: str = "deepspeed", **_) -> list[float]:
    net, objective = {"lm": (ToyLM, "lm"), "regression": (Regression, "regression")}[module]
    run_stage(Work(net(), Stream(objective)), build(dict(changes)), folder / name, engine=engine)
    return curve(folder / name)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {}
    for each in json.loads((folder / "runs.json").read_text()):
        try:
            found[each["name"]] = run(folder, **each)
        except Exception as error:
            import traceback; traceback.print_exc()
            found[each["name"]] = repr(error)
            if ranks.world()>1: raise
    if ranks.rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    ranks.leave()
