import pytest
from checkpoint.saves import Odd, save

from unimm.checkpoint.folders import CheckpointError
from unimm.checkpoint.read import take_up
from unimm.checkpoint.write import Saver
from unimm.cli import main as cli


@pytest.fixture
def run(tmp_path):
    """A run of two stages with a checkpoint of every condition."""
    for step in (1, 2, 1234):
        save(tmp_path / "sft", step)
    (tmp_path / "sft" / "step-00000002" / "state.json").unlink()
    (tmp_path / "sft" / "step-00000002").rename(tmp_path / "sft" / "step-00000002.damaged")
    (tmp_path / "sft" / "step-00001235.part").mkdir()
    file = tmp_path / "sft" / "step-00001234" / "training-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    saver = Saver(tmp_path / "pretrain")
    saver.save(7, Odd().state_dict(), {}, {}, {})
    saver.wait()
    (tmp_path / "codes").mkdir()
    return tmp_path


def test_list_shows_every_checkpoint_of_a_run_with_its_condition(run, capsys):
    assert cli.run(["checkpoint", "list", str(run)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    rows = {(words[0], words[1]): words for words in (line.split() for line in lines)}
    assert head.split() == ["stage", "step", "written", "(UTC)", "size", "ranks", "zero", "state"]
    assert set(rows) == {("sft", "1"), ("sft", "2"), ("sft", "1,234"), ("sft", "1,235"), ("pretrain", "7")}
    assert rows["sft", "1"][-3:] == ["1", "1", "whole"] and rows["pretrain", "7"][-2:] == ["?", "whole"]
    damaged = lines[list(rows).index(("sft", "1,234"))]
    assert damaged.endswith("training-00000.safetensors is damaged: its checksum differs")
    assert rows["sft", "2"][-3:] == ["set", "aside:", "damaged"] and rows["sft", "1,235"][-1] == "unfinished"
    assert cli.run(["checkpoint", "list", str(run / "sft"), "--quick"]) == 0
    assert capsys.readouterr().out.count("sizes right") == 2


def test_verify_tells_the_whole_ones_and_names_the_faulty_file(run, capsys):
    with pytest.raises(CheckpointError, match=r"sft/step-00001234/training-00000.safetensors is damaged"):
        cli.run(["checkpoint", "verify", str(run)])
    told = capsys.readouterr().out
    assert "sft/step-00000001: whole, 6 files, " in told and "pretrain/step-00000007: whole" in told
    assert cli.run(["checkpoint", "verify", str(run / "pretrain" / "step-00000007")]) == 0
    with pytest.raises(CheckpointError, match="step-00000002.damaged/state.json is missing"):
        cli.run(["checkpoint", "verify", str(run / "sft" / "step-00000002.damaged")])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["checkpoint", "verify", str(run)])
    error = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(error) == 1 and "training-00000.safetensors" in error[0]


def test_verify_is_content_once_a_run_has_set_its_damaged_checkpoint_aside(run):
    told = []
    assert take_up(run / "sft", told.append).name == "step-00000001"
    assert "training-00000.safetensors is damaged" in told[0]
    assert cli.run(["checkpoint", "verify", str(run)]) == 0


@pytest.mark.parametrize("do", ["list", "verify"])
def test_a_folder_without_checkpoints_is_refused(tmp_path, do):
    (tmp_path / "codes").mkdir()
    for path in (tmp_path, tmp_path / "none", tmp_path / "step-00000001"):
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            cli.run(["checkpoint", do, str(path)])
