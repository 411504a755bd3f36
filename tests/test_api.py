"""A model in Python gives what the commands give, with their names and defaults, and refuses what they refuse."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from tiny import TINY

from unimm.api import Model
from unimm.cli import commands
from unimm.errors import UserError
from unimm.pipeline import train_run
from unimm.serve.files import Order, draw_to_files


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_run(TINY, folder)
    return Model.load(folder)


@pytest.fixture(scope="module")
def picture(model) -> np.ndarray:
    return model.draw("a blue square", n=1)[0]


def test_what_is_drawn_is_what_the_command_draws(model, picture, tmp_path):
    Picture.fromarray(picture).save(tmp_path / "x.png")
    changes = {"temperature": 2.0, "negative": "green"}
    for images, name in (((), "a-red-circle"), ((str(tmp_path / "x.png"),), "x-a-red-circle")):
        order = Order(prompt="a red circle", n=2, seed=5, images=images)
        draw_to_files(model.system.folder, [order], tmp_path, changes)
        ours = (model.edit(picture, "a red circle", n=2, seed=5, **changes) if images else
                model.draw("a red circle", n=2, seed=5, size=(32, 32), **changes))
        for seed, drawn in zip((5, 6), ours, strict=True):
            assert np.array_equal(drawn, Picture.open(tmp_path / f"{name}-{seed}.png"))


def test_a_picture_may_be_an_array_a_pillow_image_or_a_path(model, picture, tmp_path):
    Picture.fromarray(picture).save(tmp_path / "x.png")
    kinds = (picture, Picture.fromarray(picture), tmp_path / "x.png", str(tmp_path / "x.png"))
    edits = [model.edit(kind, "make it red", n=1)[0] for kind in kinds]
    assert all(np.array_equal(edits[0], edit) for edit in edits)
    answers = {model.ask(kind, "what is this?", text_temperature=2.0, seed=1) for kind in kinds}
    assert len(answers) == 1 and answers != {""}
    said = model.chat([{"role": "user", "content": [{"type": "image", "image": Picture.fromarray(picture)},
                                                    {"type": "text", "text": "what is this?"}]}])
    assert said["role"] == "assistant" and {part["type"] for part in said["content"]} <= {"text", "image"}
    given = {"parts": [{"type": "text", "text": "a red circle"}, {"type": "image", "image": picture}]}
    more = model.go_on(given, text_temperature=2.0)["parts"]
    assert more[0] == given["parts"][0] and np.array_equal(more[1]["image"], picture) and len(more) > 2


def test_defaults_are_the_commands_own():
    for method, command in ((Model.draw, commands.Drawing), (Model.edit, commands.Drawing), (Model.ask, commands.ask),
                            (Model.chat, commands.chat), (Model.go_on, commands.continue_),
                            (Model.evaluate, commands.eval_)):
        theirs = {name: p.default for name, p in inspect.signature(command).parameters.items()}
        given = inspect.signature(method).parameters
        ours = {name: p.default for name, p in given.items() if p.default is not p.empty}
        assert ours and ours == {name: theirs[name] for name in ours}


WRONG = {
    "no prompt": lambda m, p: m.draw(" "),
    "-n is 0": lambda m, p: m.draw("a", n=0),
    "seed is -1": lambda m, p: m.draw("a", seed=-1),
    "temperature is -1": lambda m, p: m.draw("a", temperature=-1.0),
    "no setting 'temprature'": lambda m, p: m.draw("a", temprature=1.0),
    "no size 31 31; this run's": lambda m, p: m.draw("a", size=(31, 31)),
    "no size near 2:1": lambda m, p: m.edit(p, "a", size="2:1"),
    "tokens long": lambda m, p: m.edit(p, "make it red " * 200),
    "pixels must be uint8": lambda m, p: m.ask(p / 255, "what?"),
    "nothing is said": lambda m, p: m.ask(p, ""),
    "none.png: No such file": lambda m, p: m.ask(Path("none.png"), "what?"),
    "conversation is empty": lambda m, p: m.chat([]),
    "role 'cat'": lambda m, p: m.chat([{"role": "cat"}]),
    "neither": lambda m, p: m.go_on({}),
}


@pytest.mark.parametrize("why", WRONG)
def test_what_can_not_be_is_refused_by_name(why, model, picture):
    with pytest.raises(UserError, match=why):
        WRONG[why](model, picture)
