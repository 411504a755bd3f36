"""`unimm sample` and `unimm edit` on a tiny run: what lies on disk afterwards, whatever happened meanwhile."""

import hashlib
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from unimm.generate.use import draw
from unimm.pictures import facts_of
from unimm.sample import Image, Pixels, Text
from unimm.system import open_run


def pictures(out: Path) -> dict[str, tuple[bytes, int]]:
    """Name -> bytes and inode of every picture that is no grid: a file written again has another inode."""
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in sorted(out.iterdir())
            if not path.stem.endswith("grid")}


@pytest.fixture(scope="module")
def drawn(run) -> dict[int, np.ndarray]:
    """Seed -> what the library itself draws for "a red circle"."""
    return dict(enumerate(draw(open_run(run), [[Text("a red circle")]] * 8, range(8))))


def test_pictures_are_those_of_the_library_and_say_how_they_were_drawn(run, drawn, unimm, tmp_path):
    said = unimm("sample", "a red circle", "-n", "3", "--seed", "2", "--out", tmp_path, "--negative", "")
    assert "3 pictures in" in said and "images/s" in said and "16.0 steps an image" in said
    assert set(pictures(tmp_path)) == {f"a-red-circle-{seed}.png" for seed in (2, 3, 4)}
    for seed in (2, 3, 4):
        assert np.array_equal(drawn[seed], Picture.open(tmp_path / f"a-red-circle-{seed}.png"))
    facts = Picture.open(tmp_path / "a-red-circle-3.png").text  # by Pillow alone
    manifest = next((run / "sft").glob("step-*2/manifest.json")).read_bytes()
    assert facts["checkpoint"] == hashlib.sha256(manifest).hexdigest()
    assert (facts["prompt"], facts["seed"], facts["size"], facts["recipe"]) == ("a red circle", "3", "32 32", "demo")
    assert facts["Software"].startswith("unimm ") and json.loads(facts["sampling"])["guidance"] == 1.5
    width, height = Picture.open(tmp_path / "a-red-circle-grid.png").size
    assert width > 3 * 128 and 128 < height < 2 * 128


def test_what_a_picture_says_is_printed(unimm, tmp_path, capsys):
    unimm("sample", "a red circle", "-n", "1", "--negative", "blue", "--out", tmp_path)
    unimm.run = tmp_path / "a-red-circle-0.png"
    assert "negative: blue\n" in unimm("show")
    assert json.loads(unimm("show", "--json")) == facts_of(unimm.run)
    unimm.run = tmp_path / "a-red-circle-grid.png"
    assert "does not say how it was drawn" in unimm.refused("show")
    unimm.run = tmp_path / "none.png"
    assert "none.png does not say how it was drawn" in unimm.refused("show")


def test_only_what_is_not_there_is_drawn_and_nothing_else_is_written_over(unimm, tmp_path):
    arguments = ("sample", "a red circle", "a red, circle!", "-n", "2", "--out", tmp_path)
    unimm(*arguments)
    before = pictures(tmp_path)
    assert set(before) == {f"a-red-circle-{name}.png" for name in ("0", "1", "0-2", "1-2")}
    assert "4 of them there already" in unimm(*arguments)
    assert pictures(tmp_path) == before
    half = tmp_path / "a-red-circle-1.png"
    half.write_bytes(before[half.name][0][:300])
    (tmp_path / "a-red-circle-0-2.png").unlink()
    assert "2 of them there already" in unimm(*arguments)
    assert {n: data for n, (data, _) in pictures(tmp_path).items()} == {n: data for n, (data, _) in before.items()}
    unimm(*arguments, "--guidance", "3")
    after = pictures(tmp_path)
    assert len(after) == 8 and all(after[name][0] == data for name, (data, _) in before.items())
    assert facts_of(tmp_path / "a-red-circle-0-3.png")["prompt"] == "a red circle"


def test_a_wider_window_draws_the_same_pictures_in_fewer_steps(unimm, tmp_path):
    said = {window: unimm("sample", "a red circle", "-n", "8", "--window", window, "--out", tmp_path / window)
            for window in ("1", "8")}
    steps = {window: float(re.search(r"([\d.]+) steps an image", line)[1]) for window, line in said.items()}
    assert steps["1"] == 16 and steps["8"] < 12
    one, eight = ([data for data, _ in pictures(tmp_path / window).values()] for window in ("1", "8"))
    assert one == eight
    assert "8 of them there already" in unimm(
        "sample", "a red circle", "-n", "8", "--window", "4", "--out", tmp_path / "1")


def test_a_family_without_a_fast_path_is_named(run, unimm, tmp_path, monkeypatch):
    monkeypatch.setattr("unimm.model.unified.fast_body", lambda backbone: "it runs through its own module: why not")
    said = unimm("sample", "a red circle", "-n", "1", "--out", tmp_path)
    assert "decoding: it runs through its own module: why not\n" in said


def test_a_killed_command_leaves_whole_pictures_and_goes_on_where_it_was(unimm, tmp_path):
    arguments = ("a red circle", "-n", "300", "--out", tmp_path)
    process = unimm.started(*arguments, "--batch", "1")
    assert next(process.stdout).startswith("drawing 1/300")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {n: p for n, p in pictures(tmp_path).items() if not n.endswith("tmp")}
    assert 1 <= len(before) < 300 and all(facts_of(tmp_path / name) for name in before)
    assert f"{len(before)} of them there already" in unimm("sample", *arguments)
    after = pictures(tmp_path)
    assert len(after) == 300 and before.items() <= after.items()
    assert all(facts_of(tmp_path / name) for name in after)


def test_an_interrupt_loses_no_picture_and_says_how_to_go_on(unimm, tmp_path):
    process = unimm.started("a red circle", "-n", "300", "--batch", "1", "--out", tmp_path)
    assert next(process.stdout).startswith("drawing 1/300")
    process.send_signal(signal.SIGINT)
    said, told = process.communicate()
    assert process.returncode == 130 and told == "\nunimm: interrupted\n"
    count = int(re.search(r"(\d+) of 300 pictures are in .* the same command draws the others", said)[1])
    left = {name for name in pictures(tmp_path) if name.endswith("tmp")}
    assert len(pictures(tmp_path).keys() - left) - count in (0, 1) and count >= 1 and len(left) <= 1


def test_a_gpu_that_is_too_small_is_told_of_with_the_remedy(unimm, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("unimm.serve.files.drawn", full)
    assert "not the memory for --batch 32; draw fewer" in unimm.refused("sample", "a red circle", "--out", tmp_path)


def test_two_ranks_draw_what_one_does_each_its_share(unimm, drawn, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    unimm("sample", "a red circle", "-n", "1", "--out", tmp_path)
    said = unimm.ended("a red circle", "-n", "8", "--batch", "2", "--out", tmp_path, launcher=launcher)
    assert said.count("pictures in") == 1 and "8 pictures in" in said and "1 of them there already" in said
    assert "drawing, rank 0 of 2 4/4" in said
    assert len(pictures(tmp_path)) == 8
    for seed, picture in drawn.items():
        assert np.array_equal(picture, Picture.open(tmp_path / f"a-red-circle-{seed}.png"))


GENEVAL = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
           {"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [{"class": "cow", "count": 3}],
            "prompt": "a photo of two cows"}]


def as_geneval_reads(folder: Path) -> dict[str, list[tuple[dict, Path]]]:
    """What GenEval's evaluation makes of a folder (djghosh13/geneval, evaluation/evaluate_images.py, main)."""
    found = {}
    for inner in folder.iterdir():
        if inner.is_dir() and inner.name.isdigit():
            metadata = json.load(open(inner / "metadata.jsonl"))
            samples = [path for path in sorted((inner / "samples").iterdir()) if re.match(r"\d+\.png", path.name)]
            found[inner.name] = [(metadata, path) for path in samples if path.is_file()]
    return found


def test_geneval_finds_its_folders(unimm, tmp_path):
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in GENEVAL))
    arguments = ("sample", "--file", tmp_path / "evaluation_metadata.jsonl", "--layout", "geneval", "-n", "2")
    unimm(*arguments, "--out", tmp_path / "out")
    found = as_geneval_reads(tmp_path / "out")
    assert sorted(found) == ["00000", "00001"]
    for number, metadata in enumerate(GENEVAL):
        folder = tmp_path / "out" / f"{number:05}"
        assert found[folder.name] == [(metadata, folder / "samples" / f"{k:04}.png") for k in range(2)]
        assert sorted(p.name for p in folder.iterdir()) == ["grid.png", "metadata.jsonl", "samples"]
        facts = [facts_of(path) for _, path in found[folder.name]]
        assert [(f["prompt"], f["tag"], f["seed"]) for f in facts] == [
            (metadata["prompt"], metadata["tag"], str(seed)) for seed in range(2)]
    assert "4 of them there already" in unimm(*arguments, "--out", tmp_path / "out")
    line = unimm.refused(*arguments, "--out", tmp_path / "out", "--guidance", "2")
    assert "00000/samples/0000.png was drawn otherwise" in line


def test_an_edit_is_drawn_from_the_picture_and_the_words(run, unimm, tmp_path):
    rng = np.random.default_rng(0)
    one, two = (rng.integers(256, size=(40, 50, 3), dtype=np.uint8) for _ in range(2))
    Picture.fromarray(one).save(tmp_path / "A cat.png")
    unimm("edit", tmp_path / "A cat.png", "make it red", "-n", "1", "--seed", "3", "--out", tmp_path / "out")
    words = Text("make it red", role="user")
    want = draw(open_run(run), [[Image(Pixels(one), role="user"), words]], [3])[0]
    assert np.array_equal(want, Picture.open(tmp_path / "out" / "a-cat-make-it-red-3.png"))
    Picture.fromarray(two).save(tmp_path / "A cat.png")
    said = unimm("edit", tmp_path / "A cat.png", "make it red", "-n", "1", "--seed", "3", "--out", tmp_path / "out")
    assert "0 of them there already" in said and len(pictures(tmp_path / "out")) == 2
    for words in (["make it red"], [tmp_path / "A cat.png"], [tmp_path / "A cat.png", " "]):
        assert "give a picture and then the instruction" in unimm.refused("edit", *words)
    assert "none.png: No such file" in unimm.refused("edit", tmp_path / "none.png", "make it red")
