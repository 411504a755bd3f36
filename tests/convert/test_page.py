"""docs/checkpoints.md says what the code computes, and names what exists."""

import re
from pathlib import Path

from tools.checkpoints import BEGIN, END, known, parameters, table
from unimm.cli.main import parse
from unimm.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_the_table_is_the_code_s():
    assert BEGIN + table() + END in PAGE


def test_sizes_agree_with_what_the_checkpoints_are_called_for():
    """As published: papers' and model cards' own counts, in billions."""
    said = {"facebook/chameleon-7b": 7, "facebook/chameleon-30b": 34, "Emu3-community/Emu3-Gen-hf": 8.5,
            "meta-llama/Llama-3.1-8B": 8.03, "Qwen/Qwen2.5-7B": 7.62, "Qwen/Qwen3-8B": 8.19,
            "google/gemma-2-9b": 9.24, "google/gemma-3-1b-pt": 1.0, "mistralai/Mistral-7B-v0.3": 7.25,
            "deepseek-community/Janus-Pro-7B": 7.42, "deepseek-community/Janus-Pro-1B": 2.09}
    counted = {each.id: parameters(each.config) / 1e9 for each in known() if each.id in said}
    assert counted.keys() == said.keys()
    assert all(abs(counted[name] - count) < 0.04 * count for name, count in said.items()), counted


def test_recipes_files_and_commands_of_the_page_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    for each in known():
        if each.recipe:
            assert load_recipe(f"recipes/systems/{each.recipe}.py").backbone.path == each.id
    named = {word for word in re.findall(r"(?:recipes|tests|tools)/[\w./]*\w", PAGE)}
    assert len(named) > 8 and {name for name in named if not (ROOT / name).exists()} == set()
    for line in re.findall(r"^unimm .*$", PAGE, re.M):
        words = re.sub(r"#.*", "", line).split()
        assert parse(words[1:])[1] == []
