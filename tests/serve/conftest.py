"""A tiny run, and the command on it: as a real process, or in this one where that tells as much."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

from unimm.cli.main import main
from unimm.pipeline import train_run
from unimm.train import ranks

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Command:
    def __init__(self, run: Path, capsys, monkeypatch):
        self.run, self.capsys = run, capsys
        monkeypatch.setattr(ranks, "leave", lambda code: None)  # this process goes on

    def __call__(self, name: str, *words) -> str:
        """What a command that ends well says."""
        code, said, told = self._main(name, *words)
        assert code == 0, told
        return said

    def refused(self, name: str, *words) -> str:
        """The one line on stderr of a command that ends with code 2."""
        code, _, told = self._main(name, *words)
        lines = told.strip().splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("unimm: "), told
        return lines[0]

    def _main(self, name: str, *words) -> tuple[int, str, str]:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([name, str(self.run), *map(str, words)])
        return stop.value.code, *self.capsys.readouterr()

    def started(self, *words, launcher=(), stdin=subprocess.DEVNULL) -> subprocess.Popen:
        """`unimm sample RUN ...` as a process; its lines come as it says them."""
        command = [sys.executable, "-u", *launcher, "-m", "unimm", "sample", self.run, *words]
        return subprocess.Popen([*map(str, command)], cwd=ROOT, env=ENV, text=True, stdin=stdin,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ended(self, *words, launcher=(), stdin: str | bytes = "") -> str:
        """What the same says, once it has ended well."""
        process = self.started(*words, launcher=launcher, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL)
        said, told = process.communicate(stdin or None, timeout=200)
        assert process.returncode == 0, told
        return said


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_run(TINY, folder)
    return folder


@pytest.fixture
def unimm(run, capsys, monkeypatch) -> Command:
    return Command(run, capsys, monkeypatch)
