"""The README's words hold: its files exist, its example of one's own data is a recipe, its options are options."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tools.readme import BEGIN, END, table
from unimm.cli.commands import train
from unimm.cli.main import parse
from unimm.config import data, images, model, tokens
from unimm.recipe import apply_overrides, load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WRITTEN_LATER = ("0001", "runs/", "my_", "folder/", "data/*", "shards/")


def commands() -> list[list[str]]:
    """The `unimm` commands of the shell blocks in the README and in docs/, as words."""
    pages = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
    blocks = re.findall(r"```sh\n(.*?)```", "\n".join(pages), re.S)
    return [
        shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.startswith("unimm ")
    ]


def test_files_that_the_readme_names_exist():
    named = {word for word in re.findall(r"[`(]([\w.]+/[\w./-]*|[\w-]+\.(?:py|txt|png))[`)]", README)}
    assert "unimm/layout.py" in named
    missing = {name for name in named if not name.startswith(WRITTEN_LATER) and not (ROOT / name).exists()}
    assert missing == set()


def test_the_scores_are_those_of_the_run_they_came_from():
    report = json.loads((ROOT / "docs" / "demo.json").read_text())
    assert BEGIN + table(report) + END in README


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words[1:4]))
def test_commands_of_the_readme_and_the_docs_are_commands(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed, rest = parse(command[1:])
    if parsed.func is train and (recipe := parsed.keywords["recipe"]).parts[0] == "recipes":
        assert bool(apply_overrides(load_recipe(recipe), rest, "x") != load_recipe(recipe)) == bool(rest)
    else:
        assert rest == []


def test_ones_own_data_is_a_recipe_as_pasted(tmp_path, monkeypatch):
    pasted = re.findall(r"<<'PY'\n(.*?)\nPY\n", README, re.S)
    pictures, recipe = (next(text for text in pasted if mark in text) for mark in ("metadata.jsonl", "recipe = "))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", pictures], check=True)
    assert len(list((tmp_path / "my_pictures").glob("*.png"))) == 20
    (tmp_path / "my_recipe.py").write_text(recipe)
    monkeypatch.chdir(ROOT)
    assert set(load_recipe(tmp_path / "my_recipe.py").stages) == {"tokenizer", "pretrain"}


def test_the_table_of_axes_names_every_choice_and_no_other():
    table = README.split("| axis |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", table))
    image_tokenizer, quantizer = get_args(images.ImageTokenizer), get_args(images.Quantizer)
    choices = {kind.__name__ for kind in (*image_tokenizer, *quantizer, *get_args(tokens.TextTokenizer),
                                          *get_args(model.Backbone), *get_args(model.ImageIn),
                                          *get_args(model.ImageOut), *get_args(data.Source),
                                          *get_args(model.VisionEncoder), *get_args(model.Decoder),
                                          *get_args(images.TokenizerLoss))}
    assert named == choices | {"Layout", "Trains", "Lora", "AdamW", "Muon"}


def test_the_readme_counts_the_published_systems():
    numbers = {23: "twenty-three"}
    assert f"holds {numbers[len(list((ROOT / 'recipes' / 'systems').glob('[a-z]*.py')))]} published systems" in README


def test_python_in_the_readme_imports_what_exists():
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        imports = "\n".join(line for line in block.splitlines() if line.startswith(("from ", "import ")))
        subprocess.run([sys.executable, "-c", imports], cwd=ROOT, check=True)
        compile(block, "README", "exec")
