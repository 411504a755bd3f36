"""The table of systems: from recipes alone, and with what was reached."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TINY

from unimm.cli.main import run
from unimm.config.check import ConfigError
from unimm.config.images import DualTokenizer
from unimm.config.model import FreshVision
from unimm.systems import axes, table

FOUND = {"scores": {"t2i.single": [0.985, 200], "vqa.exact_match": [0.5, 70]}, "tokens": {"mean": 16.5},
         "seconds": {"total": 391.4}}


def test_a_system_is_named_by_its_choice_on_every_axis():
    assert axes(TINY) == {
        "tokenizer": "conv", "quantizer": "vq", "image in": "shared_table", "image out": "shared_softmax",
        "decoder": "tokenizer", "layout": "visual:grid", "stages": "tokenizer pretrain sft"}
    dual = replace(TINY, image_tokenizer=DualTokenizer(index="separate"), features=FreshVision())
    assert axes(dual)["quantizer"] == "vq, separate index"


def test_the_table_says_what_was_reached_and_what_was_not_trained():
    heading, trained, other = table({"a": TINY, "b": TINY}, {"a": FOUND})
    row, none = dict(zip(heading, trained)), dict(zip(heading, other))
    assert (row["one"], row["answers"], row["edits"], row["tokens"], row["seconds"]) == (
        "98.5", "50.0", "-", "16.5", "391")
    assert none["seconds"] == "not trained" and none["one"] == none["tokens"] == "-"


def test_the_command_prints_a_row_a_recipe_and_passes_over_what_is_none(tmp_path, capsys):
    (tmp_path / "base.py").write_text('"""Shared."""\nNUMBER = 1\n')
    demo = Path(__file__).parents[1] / "recipes" / "demo.py"
    (tmp_path / "one.py").write_text(demo.read_text())
    assert run(["systems", "--recipes", str(tmp_path), "--results", str(tmp_path / "none.json")]) == 0
    heading, row = capsys.readouterr().out.strip().splitlines()
    assert heading.split()[0] == "system" and row.split()[0] == "one" and row.endswith("not trained")
    with pytest.raises(ConfigError, match="holds no recipes"):
        run(["systems", "--recipes", str(tmp_path / "nothing")])
