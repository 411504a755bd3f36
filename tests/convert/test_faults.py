"""What can't be converted: one clear line each, nothing executed, nothing left behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from convert.releases import config, plain, recipe_file, recipe_of, unified, write_text
from safetensors.torch import load_file, save_file

from unimm import weights
from unimm.cli import main as cli
from unimm.convert import convert as made_of
from unimm.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A release of three shards, its recipe beside it."""
    folder = tmp_path_factory.mktemp("whole")
    plain("llama", folder / "release").save_pretrained(folder / "release", max_shard_size="40KB")
    (folder / "release" / "model.safetensors").unlink()
    recipe_file(recipe_of("llama"), folder / "system.json")
    assert len(list((folder / "release").glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture
def release(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "x")
    return tmp_path / "x" / "release"


def refused(source, *options, out: Path | None = None, recipe=True) -> str:
    """The one line that a conversion is refused with; nothing may be left of it."""
    folder = Path(source).parent
    out, before = out or folder / "out", {p for p in folder.rglob("*")}
    said = ["--recipe", str(folder / "system.json")] if recipe else []
    with pytest.raises(UserError) as why:
        cli.run(["convert", str(source), str(out), *said, *options])
    assert "\n" not in str(why.value)
    assert {p for p in folder.rglob("*")} == before
    return str(why.value)


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))


def test_the_release_itself_converts(release, capsys):
    assert cli.run(["convert", str(release), str(release.parent / "out"), "--recipe",
                    str(release.parent / "system.json")]) == 0
    said = capsys.readouterr().err
    assert "convert model.safetensors: 100%" in said and "B/s" in said


def test_folders_that_are_none(release, tmp_path):
    assert "no such folder" in refused(release.parent / "nothing")
    (release / "config.json").unlink()
    assert "no config.json" in refused(release)
    (release / "config.json").write_text("{")
    assert "config.json is damaged" in refused(release)


def test_models_of_other_kinds_are_named(release):
    for kind in ("t5", "bart", "clip", "no_such_model"):
        edit(release / "config.json", model_type=kind, is_encoder_decoder=kind == "bart")
        said = refused(release)
        assert repr(kind) in said and "chameleon, emu3, janus and the decoder-only causal language models" in said
    edit(release / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (release / "modeling_evil.py").write_text(f"open({str(release / 'ran')!r}, 'w')")
    assert "never run" in refused(release) and not (release / "ran").exists()


def test_a_missing_or_cut_shard(release):
    shard = sorted(release.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert f"{shard.name} is damaged or cut short" in refused(release)
    shard.write_bytes(content[:4])
    assert "damaged or cut short" in refused(release)
    shard.unlink()
    assert f"the shard {shard.name} is missing" in refused(release)
    index = release / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    for wrong, said in ({"lm_head.weight": "../../x.safetensors"}, "is missing"), (None, "no weight_map"):
        edit(index, weight_map=wrong)
        assert said in refused(release)
    here = {name: file for name, file in names.items() if file != shard.name}
    edit(index, weight_map=here)
    assert "lacks" in refused(release) and "download it whole" in refused(release)
    edit(index, weight_map=here | {"model.gone": next(iter(here.values()))})
    assert "lacks model.gone" in refused(release)
    shutil.rmtree(release)
    release.mkdir()
    (release / "config.json").write_text('{"model_type": "llama"}')
    assert "no weights (model.safetensors" in refused(release)


def test_weights_of_another_model(release):
    edit(release / "config.json", intermediate_size=48)
    assert "another model's" in refused(release)
    edit(release / "config.json", intermediate_size=64, num_hidden_layers=1)
    assert "does not have under these names, the first model.layers.1." in refused(release)
    edit(release / "config.json", num_hidden_layers=2, hidden_size="wide")
    assert "describes no model" in refused(release)


def test_another_vocabulary(release, tmp_path):
    write_text(release, [f"<more {n}>" for n in range(20)])
    said = refused(release)
    assert "its tokenizer has 279 ids, its table 264 rows" in said and "another model's" in said
    other = tmp_path / "emu" / "release"
    unified("emu3", other)
    names = json.loads((other / "tokenizer.json").read_text())
    text = json.dumps(names).replace("<|visual token 000095|>", "<|visual token 000777|>")
    (other / "tokenizer.json").write_text(text)
    recipe_file(recipe_of("emu3"), other.parent / "system.json")
    assert "has no <|visual token 000095|>" in refused(other)
    recipe_file(recipe_of("chameleon"), other.parent / "system.json")
    assert "the recipe is of a release with another vocabulary" in refused(other)


def test_a_system_must_be_said(release):
    assert "say with --recipe" in refused(release, recipe=False)
    assert "no such recipe" in refused(release, "--recipe", "nothing.py", recipe=False)
    assert "--split are for runs" in refused(release, "--split", "1GB")


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickles_are_read_only_when_asked_for_and_run_nothing(release, tmp_path):
    tensors = {n: t for file in release.glob("*.safetensors") for n, t in load_file(file).items()}
    for file in [*release.glob("*.safetensors"), *release.glob("*.index.json")]:
        file.unlink()
    pickled, trace = release / "pytorch_model.bin", tmp_path / "executed"
    torch.save(tensors, pickled)
    said = refused(release)
    assert "pytorch_model.bin: a pickle, which can run code" in said and "--unpickle" in said
    out = release.parent / "ok"
    cli.run(["convert", str(release), str(out), "--unpickle", "--recipe", str(release.parent / "system.json")])
    found = load_file(out / "converted" / "step-00000000" / "model.safetensors")
    assert all(torch.equal(t, found[f"backbone.{n}"]) for n, t in tensors.items())
    torch.save(tensors | {"evil": Attack(trace)}, pickled)
    assert "holds more than tensors" in refused(release, "--unpickle")
    pickled.write_bytes(pickled.read_bytes()[:2000])
    assert "damaged" in refused(release, "--unpickle") or "refused" in refused(release, "--unpickle")
    assert not trace.exists()


def test_targets_that_are_in_the_way(release, monkeypatch):
    there = release.parent / "there"
    there.mkdir()
    (there / "file").touch()
    assert "there is there already" in refused(release, out=there)
    assert "one inside the other" in refused(release, out=release / "inside")
    assert "one inside the other" in refused(release, out=release)
    (release.parent / "left.part").mkdir()
    assert "left.part is in the way" in refused(release, out=release.parent / "left")
    assert "can't write" in refused(release, out=there / "file" / "out")
    monkeypatch.setattr(made_of.shutil, "disk_usage", lambda path: os.statvfs_result and type("d", (), {"free": 10**6}))
    assert "GB free; free the disk" in refused(release)


def test_a_failing_write_leaves_nothing(release, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "write_tensors", full)
    assert "No space left on device" in refused(release)


def test_a_damaged_run_is_refused(release, tmp_path):
    run, said = release.parent / "run", ["--recipe", str(release.parent / "system.json")]
    cli.run(["convert", str(release), str(run), *said])
    file = run / "converted" / "step-00000000" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "none of the 1 checkpoints" in refused(run, recipe=False)
    assert config(release)["model_type"] == "llama"
    assert "is a run, which has its recipe" in refused(run)
    assert "--split is" in refused(run, "--split", "five", recipe=False)
    save_file({}, file)
