"""From transformers' format into a run and back: every tensor bit for bit, the configuration, the tokenizer's ids."""

import pytest
import torch
from convert.releases import PLAIN, UNIFIED, config, plain, recipe_file, recipe_of, unified
from safetensors.torch import load_file
from transformers import AutoTokenizer

from unimm.cli import main as cli


def tensors(folder) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    def raw(t: torch.Tensor) -> torch.Tensor:
        return t.contiguous().reshape(-1).view(torch.uint8)

    return a.keys() == b.keys() and all(t.dtype == b[name].dtype and t.shape == b[name].shape
                                        and torch.equal(raw(t), raw(b[name])) for name, t in a.items())


def there_and_back(source, recipe, tmp_path, *options):
    said = recipe_file(recipe, tmp_path / "system.json")
    assert cli.run(["convert", str(source), str(tmp_path / "run"), "--recipe", str(said)]) == 0
    assert cli.run(["convert", str(tmp_path / "run"), str(tmp_path / "back"), *options]) == 0
    return tmp_path / "back"


@pytest.mark.parametrize("kind", PLAIN + UNIFIED)
def test_a_release_comes_back_as_it_was(kind, tmp_path):
    source = tmp_path / "source"
    (unified if kind in UNIFIED else plain)(kind, source)
    back = there_and_back(source, recipe_of(kind), tmp_path)
    assert same(tensors(source), tensors(back))
    assert config(source) == config(back)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (source / name).read_bytes() == (back / name).read_bytes()
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (source, back))
    for text in ("a red circle", "<s>héllo</s> \n", "[user] ▁"):
        assert old(text).input_ids == new(text).input_ids
    chat = [{"role": "user", "content": "hi"}]
    assert old.apply_chat_template(chat, tokenize=False) == new.apply_chat_template(chat, tokenize=False) == "[user]hi"
