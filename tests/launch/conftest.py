import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY

from unimm.config.stages import AdamW
from unimm.pipeline import train_run

ROOT = Path(__file__).parents[2]
STAGE = "pretrain"


class Runs:
    """A run whose codes are there, and its curve by one process; copies of it to train by other launchers."""

    templates = ROOT / "tools" / "launch"

    def __init__(self, folder: Path):
        self.folder = folder
        # fp32 and AdamW: what ranks change is then rounding alone.
        stages = {name: replace(TINY.stages[name], **changes) for name, changes in {
            "tokenizer": {},
            STAGE: {"steps": 5, "save_every": 2, "precision": "fp32", "optimizer": AdamW(), "zero": 1},
        }.items()}
        train_run(replace(TINY, stages=stages), folder / "one")
        self.alone = self.curve(folder / "one")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {
            "OMP_NUM_THREADS": "1", "RANKS": "2", "RESTARTS": "0", "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def fresh(self, name: str) -> Path:
        shutil.copytree(self.folder / "one", self.folder / name, ignore=shutil.ignore_patterns(STAGE))
        return self.folder / name

    def start(self, *command, **environment) -> subprocess.Popen:
        return subprocess.Popen([str(word) for word in command], env=self.environment | environment, cwd=ROOT,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(self, *processes: subprocess.Popen) -> str:
        """Wait for processes that have to succeed; what they said."""
        try:
            said = [process.communicate(timeout=300)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)[-6000:]
        return "\n".join(said)

    @staticmethod
    def curve(run: Path, stage: str = STAGE) -> list[float]:
        lines = (run / stage / "metrics.jsonl").read_text().splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    def same(self, run: Path) -> None:
        """The run ended with the curve of one process."""
        assert len(self.alone) == 5 and self.curve(run) == pytest.approx(self.alone, abs=1e-5)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("launch"))


@pytest.fixture
def port() -> str:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
