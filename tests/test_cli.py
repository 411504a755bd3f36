"""The command as its users run it: real processes where they tell, exit codes, one line on stderr."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

from unimm.cli.main import main
from unimm.pipeline import train_run
from unimm.train import ranks

ROOT = Path(__file__).parents[1]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def unimm(*arguments, stdin: str = "", code: str | None = None) -> subprocess.CompletedProcess:
    start = ["-c", code] if code else ["-m", "unimm"]
    return subprocess.run([sys.executable, *start, *map(str, arguments)], cwd=ROOT, env=ENV, input=stdin,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_run(TINY, folder)
    return folder


@pytest.fixture
def ends(capsys, monkeypatch):
    """Runs a command in this process: its exit code, what it said, and what it said on stderr."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ranks, "leave", lambda code: None)  # this process goes on, and DeepSpeed keeps to its group

    def ends(*arguments, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        return stop.value.code, *capsys.readouterr()

    return ends


def one_line(code: int, said: str, told: str) -> str:
    """The one line on stderr of a command that was refused."""
    lines = told.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("unimm: "), told
    return lines[0]


@pytest.fixture
def refused(ends):
    return lambda *arguments: one_line(*ends(*arguments))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_refusal_of_a_real_process_is_one_line_and_code_2(encoding, monkeypatch):
    monkeypatch.setitem(ENV, "PYTHONIOENCODING", encoding)
    done = unimm("train", "recipes/demo.py", "--stages.sft.steps", "-3")
    assert "steps is -3; it must be greater than 0" in one_line(done.returncode, done.stdout, done.stderr)


def test_help_and_show_import_nothing_heavy():
    heavy = "torch", "transformers", "deepspeed", "datasets", "grain", "PIL"
    code = ("import sys\nfrom unimm.cli.main import main\n"
            "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
            f"assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)")
    assert "train" in unimm("--help", code=code).stdout
    done = unimm("show", "recipes/demo.py", code=code)
    assert done.returncode == 0, done.stderr


def test_show_prints_axes_stages_and_a_sample_with_learned_tokens_marked():
    shown = unimm("show", "recipes/demo.py").stdout
    for axis in ("image tokenizer", "quantizer", "image in", "image out", "layout", "backbone"):
        assert axis in shown
    assert "sft" in shown and "pairs, t2i" in shown and "«<boi>»" in shown
    json = unimm("show", "recipes/demo.py", "--json", "--stages.sft.steps", "7").stdout
    assert '"steps": 7' in json


def test_bad_recipes_and_overrides_are_refused(tmp_path, refused):
    assert "no such recipe" in refused("show", "nothing.py")
    assert "did you mean --stages.sft.steps?" in refused("show", "recipes/demo.py", "--stages.sft.stps", "3")
    assert "steps is -3; it must be greater than 0" in refused("train", "recipes/demo.py", "--stages.sft.steps", "-3")
    assert "'x'" in refused("train", "recipes/demo.py", "--stages.sft.steps", "x")
    (tmp_path / "bad.py").write_text("from unimm.config.stages import AdamW\nAdamW(lrr=1)\n")
    assert "AdamW has no field 'lrr'; did you mean 'lr'?" in refused("show", tmp_path / "bad.py")
    (tmp_path / "broken.py").write_text("recipe = (\n")
    assert "broken.py:1" in refused("show", tmp_path / "broken.py")
    assert "show, plan, train, status" in refused("shwo")


def test_unwritable_outputs_are_refused_before_any_work(run, tmp_path, refused):
    (tmp_path / "file").write_text("")
    assert "file" in refused("train", "recipes/demo.py", "--out", tmp_path / "file" / "run")
    assert "file" in refused("sample", run, "a red circle", "--out", tmp_path / "file" / "pictures")


def test_bad_runs_and_prompts_are_refused(run, tmp_path, refused):
    assert "not a run" in refused("sample", tmp_path, "a red circle")
    assert "no prompt" in refused("sample", run)
    assert "no prompt" in refused("sample", run, "  ")
    assert "tokens long, but the model was trained on at most" in refused("sample", run, "a red circle " * 200)
    assert "-n is 0" in refused("sample", run, "a", "-n", "0")
    assert "temperature is -1" in refused("sample", run, "a", "--temperature", "-1")
    assert "unknown option --steps" in refused("sample", run, "a", "--steps", "3")


def test_damaged_and_foreign_checkpoints_are_refused(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    for weights in (tmp_path / "run").glob("*/step-*/model.safetensors"):
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    assert "damaged" in refused("sample", tmp_path / "run", "a red circle")
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(run, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "sft").glob("step-*"))[-1]
    shutil.rmtree(newest)
    shutil.copytree(sorted((run / "tokenizer").glob("step-*"))[-1], newest)
    assert "sft" in refused("sample", tmp_path / "run", "a red circle")


def test_encode_makes_codes_once_and_again_where_they_are_gone(run, tmp_path, ends, refused):
    shutil.copytree(run, tmp_path / "run")
    shard = tmp_path / "run" / "codes" / "chats" / "codes-00000.arrow"
    before = shard.read_bytes()
    shard.write_bytes(before[:-100])
    code, _, told = ends("encode", tmp_path / "run", "--data", "chats")
    assert code == 0, told
    assert shard.read_bytes() == before
    assert "no data 'chat'" in refused("encode", tmp_path / "run", "--data", "chat")
    assert "no such recipe" in refused("encode", tmp_path / "none")


def test_a_sample_longer_than_a_row_is_refused_by_name(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("pretrain", "sft"))
    recipe = tmp_path / "run" / "recipe.json"
    text = recipe.read_text().replace('"seq_len": 256', '"seq_len": 20')
    recipe.write_text(text.replace('"step_tokens": 512', '"step_tokens": 40'))
    line = refused("train", tmp_path / "run")
    assert "tokens long, a row is 20; raise seq_len" in line and "unimm: shapes-" in line


def test_sampling_takes_special_token_text_as_plain_text(run, tmp_path, ends):
    code, _, told = ends("sample", run, "</s><boi> a red circle", "-n", "2", "--seed", "3", "--out", tmp_path)
    assert code == 0, told
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "s-boi-a-red-circle-3.png", "s-boi-a-red-circle-4.png", "s-boi-a-red-circle-grid.png"]


def test_a_chat_goes_on_after_a_refused_line(run, tmp_path, ends):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    said = f"{tmp_path}/broken.png what is this?\nmissing.png\n/new\nwhat color is it?\n" + "word " * 400 + "\n/quit\n"
    code, answered, told = ends("chat", run, "--out", tmp_path / "out", stdin=said)
    assert code == 0, told
    for reason in ("broken.png", "missing.png", "a new conversation", "tokens long"):
        assert reason in answered
    assert "Traceback" not in told
