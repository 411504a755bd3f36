"""`unimm systems`: the systems of this repository on their axes, with what their toy scales reached where trained."""

import json
from pathlib import Path

from unimm.config.images import DualTokenizer, OwnTokenizer
from unimm.config.recipe import Recipe

SCORES = {"t2i.single": "one", "t2i.count": "count", "t2i.relation": "relation", "t2i.two": "two",
          "vqa.exact_match": "answers", "edit.exact_match": "edits", "tokenizer.judge": "gives back"}
"""The keys of report.json that the table shows, and what it calls them."""


def axes(recipe: Recipe) -> dict[str, str]:
    """A recipe's choice on every axis, in a word or two."""
    tokenizer, levels = recipe.image_tokenizer, recipe.layout.write.levels
    quantizer = (f"vq, {tokenizer.index} index" if isinstance(tokenizer, DualTokenizer)
                 else tokenizer.quantizer.kind if isinstance(tokenizer, OwnTokenizer) else "published")
    return {"tokenizer": tokenizer.kind, "quantizer": quantizer, "image in": recipe.image_in.kind,
            "image out": recipe.image_out.kind, "decoder": recipe.decoder.kind,
            "layout": " ".join(f"{level.space}:{level.shape.kind}" for level in levels),
            "stages": " ".join(recipe.stages)}


def score(system: dict, key: str) -> tuple[float, int] | None:
    """A score of docs/systems.json with the count it was measured on; None where the system was not asked for it."""
    return tuple(system["scores"][key]) if key in system.get("scores", {}) else None


def table(recipes: dict[str, Recipe], trained: dict[str, dict]) -> list[list[str]]:
    """Rows of text, the heading first: a system, its axes, tokens of an image, scores in percent, seconds."""
    rows = [["system", *axes(next(iter(recipes.values()))), "tokens", *SCORES.values(), "seconds"]]
    for name, recipe in recipes.items():
        found = trained.get(name, {})
        reached = [score(found, key) for key in SCORES]
        rows.append([name, *axes(recipe).values(), f"{found['tokens']['mean']:g}" if found else "-",
                     *(f"{100 * value[0]:.1f}" if value else "-" for value in reached),
                     f"{found['seconds']['total']:.0f}" if found else "not trained"])
    return rows


def read_recipes(folder: Path) -> dict[str, Recipe]:
    """The recipes of a folder by the stems of their files; modules that define none are passed over."""
    from unimm.recipe import load_recipe

    return {path.stem: load_recipe(path) for path in sorted(folder.glob("*.py")) if "recipe = " in path.read_text()}


def read_results(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {"systems": {}, "comparisons": {}}
