"""RUN/status.json and `unimm status`: what a launch script is told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unimm.cli.main import run
from unimm.config.check import ConfigError
from unimm.status import Status, StatusError, code_of, read_status, told
from unimm.train.signals import Interrupted, ended

ROOT = Path(__file__).parents[1]


def end(folder, error: BaseException | None, rank=0, world=1) -> dict:
    status = Status(folder, rank, world)
    try:
        with told(status, ended):
            status.at(stage="sft", step=7, steps=9, checkpoint="sft/step-00000006")
            if error:
                raise error
    except type(error):
        pass
    return read_status(folder)


@pytest.mark.parametrize(("error", "state", "code", "scripted"), [
    (None, "done", 0, 0),
    (Interrupted(signal.SIGUSR1, Path("p"), "again"), "resume", 75, 75),
    (Interrupted(signal.SIGTERM, Path("p"), "again"), "resume", 143, 75),
    (KeyboardInterrupt(), "resume", 130, 75),
    (ConfigError("rows is 3"), "failed", 2, 1),
    (OSError(5, "Input/output error"), "failed", 2, 1),
    (RuntimeError("boom"), "failed", 1, 1)])
def test_every_end_has_its_state_its_code_and_a_code_for_scripts(tmp_path, capsys, error, state, code, scripted):
    found = end(tmp_path, error)
    assert (found["state"], found["code"], found["stage"], found["step"]) == (state, code, "sft", 7)
    assert run(["status", str(tmp_path)]) == code_of(found) == scripted
    said = capsys.readouterr().out
    assert f"{state}, stage sft, step 7" in said and "sft/step-00000006" in said
    assert (str(error) in said) if isinstance(error, ConfigError | RuntimeError) else True
    assert [e["rank"] for e in found["errors"]] == ([0] if state == "failed" else [])


def test_a_run_under_way_or_killed_without_a_word_is_running(tmp_path, capsys):
    status = Status(tmp_path)
    status.begin()
    status.at(stage="sft", step=1, checkpoint="")
    assert run(["status", str(tmp_path)]) == 3
    assert "killed without a word" in capsys.readouterr().out
    assert run(["status", str(tmp_path), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["pid"] == os.getpid()


def test_errors_of_all_ranks_stand_together_the_first_one_first_and_a_new_attempt_forgets_them(tmp_path):
    statuses = [Status(tmp_path, rank, 3) for rank in range(3)]
    statuses[0].begin()
    for rank, error in ((2, "out of memory"), (0, "connection reset"), (1, "connection reset")):
        statuses[rank].end("failed", 1, error)
    found = read_status(tmp_path)
    assert [(e["rank"], e["message"]) for e in found["errors"]] == [
        (2, "out of memory"), (0, "connection reset"), (1, "connection reset")]
    assert found["state"] == "failed" and found["world"] == 3
    statuses[0].begin()
    found = read_status(tmp_path)
    assert found["state"] == "running" and found["errors"] == []
    statuses[1].begin()  # only rank 0 says that a run begins
    statuses[1].end("done", 0, "")
    assert read_status(tmp_path)["state"] == "running"


def test_a_step_is_not_written_each_time_but_a_checkpoint_is(tmp_path):
    status = Status(tmp_path)
    status.begin()
    status.at(stage="sft", step=1, checkpoint="")
    status.at(step=2)
    assert read_status(tmp_path)["step"] == 1
    status.at(step=3, checkpoint="sft/step-00000003")
    assert read_status(tmp_path)["step"] == 3
    status.written -= 61
    status.at(step=4)
    assert read_status(tmp_path)["step"] == 4


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(StatusError, match="holds no run"):
        run(["status", str(tmp_path)])


def test_status_starts_without_torch(tmp_path):
    end(tmp_path, None)
    script = "import sys; from unimm.cli.main import run; run(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, "status", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
