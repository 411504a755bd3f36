"""`unimm ask` and `unimm continue`: the answer of the library, the document that was read and what follows it."""

import json

import numpy as np
import pytest
from PIL import Image as Picture

from unimm.errors import UserError
from unimm.generate.use import answer, go_on
from unimm.sample import Image, Pixels, Text
from unimm.serve.documents import document, parts_in
from unimm.stream.pixels import load_pixels
from unimm.system import open_run

LOUD = {"text_temperature": 50.0, "text_length": 120}  # at which an untrained model begins an image now and then


@pytest.fixture
def shown(tmp_path):
    Picture.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return Image(Pixels(load_pixels(tmp_path / "a.png", "")), role="user")


def test_a_question_is_answered_as_the_library_does(run, unimm, shown, tmp_path):
    system, flags = open_run(run), ("--text-temperature", "2", "--seed", "3")
    parts = [shown, shown, Text("what is this?", role="user")]
    want = answer(system, [parts], system.recipe.sampling.changed(text_temperature=2.0), 3)[0].strip()
    assert want and unimm("ask", *[tmp_path / "a.png"] * 2, "what is this?", *flags) == want + "\n"
    assert "tokens long" in unimm.refused("ask", tmp_path / "a.png", "what " * 300)
    assert "give a picture and then the question" in unimm.refused("ask", tmp_path / "a.png")
    assert "none.png: No such file" in unimm.refused("ask", tmp_path / "none.png", "what is this?")


@pytest.mark.parametrize("chat", [False, True], ids=["document", "chat"])
def test_a_document_goes_on_with_text_and_pictures_in_the_model_s_own_order(chat, run, unimm, shown, tmp_path):
    content = [{"type": "text", "text": "a red circle"}, {"type": "image", "image": "a.png"}]
    given = {"messages": [{"role": "user", "content": content}]} if chat else {"parts": content}
    (tmp_path / "d.json").write_text(json.dumps(given))
    system = open_run(run)
    parts, settings = parts_in(tmp_path / "d.json"), system.recipe.sampling.changed(**LOUD)
    assert [part.role for part in parts] == ["user" if chat else None] * 2
    written, seed = [], -1
    while not any(isinstance(part, Image) for part in written):
        seed += 1
        written = go_on(system, parts, settings, seed, images=2)
    unimm("continue", tmp_path / "d.json", "--images", "2", "--seed", seed, "--text-temperature", "50",
          "--text-length", "120")
    out = tmp_path / "d-continued"
    again = parts_in(out / "document.json")
    assert {role for role in ("user", "assistant", None) if any(part.role == role for part in again)} == (
        {"user", "assistant"} if chat else {None})
    images = [part.content.array for part in again if isinstance(part, Image)]
    want = [part.content.array for part in (*parts, *written) if isinstance(part, Image)]
    assert len(images) >= 2 and all(np.array_equal(a, b) for a, b in zip(images, want, strict=True))
    assert {p.name for p in out.iterdir()} == {"document.json", *(f"image-{n:03}.png" for n in range(len(images)))}
    same = document([*parts, *written], lambda image: None), document(again, lambda image: None)
    assert same[0] == same[1]
    assert "is there already" in unimm.refused("continue", tmp_path / "d.json")


def test_no_more_pictures_are_written_than_may_be(run, shown):
    system = open_run(run)
    settings, parts = system.recipe.sampling.changed(**LOUD), [Text("a red circle")]
    counts = {images: [sum(isinstance(part, Image) for part in go_on(system, parts, settings, seed, images))
                       for seed in range(8)] for images in (0, 1)}
    assert counts[0] == [0] * 8 and max(counts[1]) == 1


def test_what_is_no_document_is_refused(unimm, tmp_path):
    file = tmp_path / "d.json"
    for text, why in {"": "d.json: not JSON", "[]": "d.json: neither", "{}": "neither",
                      '{"messages": []}': "nothing in it",
                      '{"parts": [{"type": "text", "text": ""}]}': "nothing in it",
                      '{"parts": [{"type": "sound"}]}': "a part must be",
                      '{"parts": [{"type": "image", "image": "none.png"}]}': "none.png: No such file",
                      '{"messages": [{"role": "cat", "content": "miaow"}]}': "role 'cat'"}.items():
        file.write_text(text)
        assert why in unimm.refused("continue", file), text
    assert "none.json: No such file or directory" in unimm.refused("continue", tmp_path / "none.json")
    with pytest.raises(UserError, match="neither"):
        parts_in({"content": "x"})
