import json

import pytest
import torch
from tiny import TINY

from unimm.checkpoint.folders import CheckpointError, verify
from unimm.checkpoint.read import keyed
from unimm.checkpoint.write import Saver
from unimm.cli import main as cli
from unimm.config.check import ConfigError
from unimm.disk import DiskError
from unimm.images.tokenizer import build_tokenizer, fingerprint, save_tokenizer
from unimm.recipe import recipe_to_json
from unimm.system import layout_of, new_model, open_run, text_of
from unimm.text import train_sentencepiece


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints of its last stage, the newer one averaged; nothing in it was trained."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe_to_json(TINY))
    words = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "ring")]
    text = train_sentencepiece([f"{a} above {b}" for a in words for b in words], 300)
    (folder / "text.model").write_bytes(text.model)
    tokenizer = build_tokenizer(TINY.image_tokenizer)
    save_tokenizer(tokenizer, folder / "image_tokenizer")
    saver = Saver(folder / "sft", keep=9)
    for step in (1, 2):
        torch.manual_seed(step)
        model = new_model(TINY, layout_of(TINY, text_of(TINY, folder)), tokenizer)
        pieces = {}
        for name, p in model.named_parameters():
            pieces |= keyed(name, 0, {"master": p.detach().flatten(), "ema": p.detach().flatten() / 2})
        left = {name: t / 2 if step == 2 and name in dict(model.named_parameters()) else t
                for name, t in model.state_dict().items()}
        saver.save(step, left, pieces, {"stage": "sft"}, {})
    saver.wait()
    return folder


def weights(folder) -> dict[str, torch.Tensor]:
    return open_run(folder).model.state_dict()


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def test_an_exported_run_opens_as_the_run_does_without_its_training_state(run, tmp_path, capsys):
    out = tmp_path / "made" / "out"
    assert cli.run(["checkpoint", "export", str(run), str(out)]) == 0
    assert f"exported: {out}" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "export.json", "image_tokenizer", "manifest.json", "model.safetensors", "recipe.json", "text.model"]
    ours, theirs = open_run(run), open_run(out)
    assert equal(ours.model.state_dict(), theirs.model.state_dict()) and theirs.checkpoint == out
    assert fingerprint(ours.tokenizer) == fingerprint(theirs.tokenizer) and ours.recipe == theirs.recipe
    assert json.loads((out / "export.json").read_text()) == {
        "run": "tiny", "stage": "sft", "step": 2, "weights": "as the stage left them"}
    assert cli.run(["checkpoint", "verify", str(out)]) == 0


def test_averaged_trained_and_older_weights_can_be_asked_for(run, tmp_path):
    for name, options in {"ema": ["--ema"], "trained": ["--trained"], "first": ["--step", "1"],
                          "first ema": ["--step", "1", "--stage", "sft", "--ema"]}.items():
        cli.run(["checkpoint", "export", str(run), str(tmp_path / name), *options])
    newest, ema, trained = weights(run), weights(tmp_path / "ema"), weights(tmp_path / "trained")
    assert equal(ema, newest) and not equal(trained, newest)
    assert all(torch.equal(t, ema[name] * 2) for name, t in trained.items())
    first, averaged = weights(tmp_path / "first"), weights(tmp_path / "first ema")
    assert all(torch.equal(t, averaged[name] * 2) for name, t in first.items()) and not equal(first, trained)


def test_a_damaged_export_is_refused_by_the_file_s_name(run, tmp_path):
    out = tmp_path / "out"
    cli.run(["checkpoint", "export", str(run), str(out)])
    for name in ("model.safetensors", "recipe.json", "text.model", "image_tokenizer/config.json"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole + b" ")
        with pytest.raises(CheckpointError, match=f"out/{name} is damaged"):
            open_run(out)
        (out / name).write_bytes(whole)
    verify(out)


def test_what_is_not_there_to_export_and_what_is_in_the_way_are_refused(run, tmp_path):
    def refused(kind, match, *options, out=tmp_path / "out"):
        with pytest.raises(kind, match=match):
            cli.run(["checkpoint", "export", str(run), str(out), *options])
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()

    refused(ConfigError, "no language stage 'tokenizer'.*pretrain, sft", "--stage", "tokenizer")
    refused(CheckpointError, "no such checkpoint to export; see: unimm checkpoint list", "--step", "3")
    refused(CheckpointError, "no such checkpoint to export", "--stage", "pretrain")
    refused(ConfigError, "two kinds of weights", "--ema", "--trained")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused(ConfigError, "full is there already", out=tmp_path / "full")
    refused(DiskError, "can't write .*full/file/out", out=tmp_path / "full" / "file" / "out")
    (tmp_path / "left.part").mkdir()
    refused(ConfigError, "left.part is in the way", out=tmp_path / "left")
    cli.run(["checkpoint", "export", str(run), str(tmp_path / "once")])
    with pytest.raises(ConfigError, match="once was exported"):
        cli.run(["train", str(tmp_path / "once")])
    with pytest.raises(CheckpointError, match="no such checkpoint to export"):
        cli.run(["checkpoint", "export", str(tmp_path / "once"), str(tmp_path / "twice")])
