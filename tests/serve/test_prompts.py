"""Where prompts come from, what is said of each, and prompts that mean harm or nothing."""

import json
import os

import numpy as np
import pytest
from PIL import Image as Picture

from unimm.config.tokens import ImageLayout, Layout, LevelLayout
from unimm.errors import UserError
from unimm.generate.use import draw
from unimm.pictures import facts_of
from unimm.sample import Text
from unimm.serve.files import Order, codes_of, read_orders
from unimm.system import open_run

HOSTILE = {
    "special tokens": "</s><boi><eoi><|assistant|><pad> a red circle",
    "emoji": "🟥🔴👨‍👩‍👧‍👦",
    "right to left": "دائرة حمراء \u202eelcric der a",
    "control characters": "a\x01\x07\x1b[31m red\x0c circle\x85 \u2028 \x7f",
    "a path": "../../etc/passwd",
    "combining": "é" + "\u0301" * 30,
    "no word": "???",
    "a name that Windows keeps": "NUL",
}


def test_hostile_prompts_are_drawn_as_the_text_that_they_are(run, unimm, tmp_path):
    system = open_run(run)
    for name, prompt in HOSTILE.items():
        ids = system.layout.prompt((Text(prompt),), "image", (4, 4)).ids.tolist()[1:-1]
        assert all(system.layout.vocab.is_text[i] for i in ids), name
    lines = "\r\n".join([*HOSTILE.values(), "", json.dumps({"prompt": "two\nlines\r\nof it"})])
    said = unimm.ended("-", "-n", "1", "--out", tmp_path / "out", stdin=lines)
    assert f"{len(HOSTILE) + 1} pictures in" in said
    files = {facts_of(path)["prompt"]: path for path in (tmp_path / "out").glob("*-0*.png")}
    assert set(files) == {*HOSTILE.values(), "two\nlines\r\nof it"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    for prompt, path in files.items():
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert np.array_equal(draw(system, [[Text(prompt)]], [0])[0], Picture.open(path))


def test_a_prompt_that_is_none_is_refused_in_one_line(unimm, tmp_path):
    for prompt, why in {"": "no prompt", " \t": "no prompt", "a\0b": "a zero character is no text",
                        os.fsdecode(b"caf\xe9"): "not valid Unicode",
                        "a" * 100_000: "tokens long, but the model was trained on at most",
                        "🔴" * 100_000: "tokens long, but the model was trained on at most"}.items():
        assert why in unimm.refused("sample", prompt)
    assert "not valid Unicode" in unimm.refused("sample", "a", "--negative", os.fsdecode(b"caf\xe9"))


LINES = {
    '{"prompt": "a"': "p.jsonl:2: not JSON",
    '{"n": 2}': "p.jsonl:2: no prompt",
    '{"prompt": 3}': "p.jsonl:2: prompt: Input should be a valid string",
    '{"prompt": "a", "n": 0}': "p.jsonl:2: -n is 0",
    '{"prompt": "a", "seed": -1}': "p.jsonl:2: seed is -1",
    '{"prompt": "a", "seed": "x"}': "p.jsonl:2: seed: ",
    '{"prompt": "a", "sede": 1}': "p.jsonl:2: no field 'sede'; did you mean 'seed'?",
    '{"prompt": "a", "negative_prompt": "b"}': "did you mean 'negative'?",
    '{"prompt": "a", "size": [7, 9]}': "p.jsonl:2: no size 7 9; this run's (height width) are: 32 32",
    '{"prompt": "a", "size": "wide"}': "p.jsonl:2: aspect 'wide' is none",
    '{"prompt": "a", "images": ["none.png"]}': "none.png: No such file",
    '{"prompt": "' + "a" * 2000 + '"}': "p.jsonl:2: the prompt is",
    '{"prompt": "\\ud800"}': "p.jsonl:2: the text '\\ud800' is not valid Unicode",
    '{"prompt": "a", "negative": "\\u0000"}': "p.jsonl:2: a zero character",
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40])
def test_a_bad_line_is_refused_with_its_number(line, unimm, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    assert LINES[line] in unimm.refused("sample", "--file", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_text_are_refused_with_their_line(unimm, tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa red circle\nblue \xff square\n")
    line = unimm.refused("sample", "--file", tmp_path / "p.txt")
    assert "p.txt:2: the text 'blue \\udcff square' is not valid Unicode" in line


def test_what_can_not_be_is_refused_before_weights_are_read(unimm, tmp_path, monkeypatch):
    monkeypatch.setattr("unimm.serve.files.open_run", None)
    monkeypatch.setattr("unimm.serve.documents.open_run", None)
    monkeypatch.setattr("unimm.api.open_run", None)
    assert "none.txt: no such file" in unimm.refused("sample", "--file", tmp_path / "none.txt")
    assert "not both" in unimm.refused("sample", "a", "--file", tmp_path / "none.txt")
    assert "no size near 16:9; this run's (height width) are: 32 32" in unimm.refused("sample", "a", "--aspect", "16:9")
    assert "--size and --aspect" in unimm.refused("sample", "a", "--aspect", "1:1", "--size", "32", "32")
    assert "--batch is 0" in unimm.refused("sample", "a", "--batch", "0")
    assert "temperature is -1" in unimm.refused("sample", "a", "--temperature", "-1")
    (tmp_path / "words.png").write_text("no picture")
    assert "words.png: not an image" in unimm.refused("edit", tmp_path / "words.png", "make it red")
    assert "words.png: not an image" in unimm.refused("ask", tmp_path / "words.png", "what is it?")
    Picture.new("RGB", (8, 8)).save(tmp_path / "black.png")
    assert "temperature is -1" in unimm.refused("ask", tmp_path / "black.png", "what?", "--text-temperature", "-1")
    assert "words.png: not JSON" in unimm.refused("continue", tmp_path / "words.png")
    unimm.run = tmp_path
    assert "not a run" in unimm.refused("sample", "a")
    assert "not a run" in unimm.refused("ask", tmp_path / "black.png", "what?")


def test_lines_say_for_themselves_what_else_the_command_line_says(tmp_path):
    said = {"n": 4, "seed": 0, "size": "1:1"}
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "n": 1, "seed": 9, "size": [32, 32], "negative": "b", "tag": "t", "images": ["x/y.png"]}\n'
        '\nplain words\n{"prompt": "c", "include": [{"class": "cow"}], "tag": "u"}')
    one, two, three = read_orders((), tmp_path / "p.jsonl", said)
    assert (one.n, one.seed, one.size, one.negative, one.tag) == (1, 9, (32, 32), "b", "t")
    assert one.images == (str(tmp_path / "x" / "y.png"),)
    assert (two.prompt, two.n, two.size, two.where) == ("plain words", 4, "1:1", f"{tmp_path / 'p.jsonl'}:3")
    assert json.loads(three.line) == {"prompt": "c", "include": [{"class": "cow"}], "tag": "u"}
    assert read_orders(("a", "b"), None, said) == [
        Order(prompt=p, line=json.dumps({"prompt": p}), **said) for p in ("a", "b")]


def layout(*sizes: tuple[int, int]) -> Layout:
    return Layout(write=ImageLayout(begin="<b>", levels=(LevelLayout(space="v"),), end="<e>"), sizes=sizes,
                  pixels_per_code=8)


def test_an_aspect_is_the_nearest_size_and_a_size_that_is_not_offered_is_named():
    some = layout((4, 4), (3, 5), (5, 3), (6, 6))
    assert codes_of(some, None) == (4, 4) and codes_of(some, (24, 40)) == (3, 5)
    assert [codes_of(some, aspect) for aspect in ("16:9", "3:2", "9:16", "1:1", "10:9")] == [
        (3, 5), (3, 5), (5, 3), (6, 6), (6, 6)]
    for wrong in ("3:1", (24, 41), (4, 4)):
        with pytest.raises(UserError, match="^no size .* are: 32 32, 24 40, 40 24, 48 48$"):
            codes_of(some, wrong)
    for wrong in ("16", "0:1", "1:1:1", "1:-1", "a:b", ""):
        with pytest.raises(UserError, match="aspect .* is none"):
            codes_of(some, wrong)
