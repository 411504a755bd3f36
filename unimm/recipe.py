"""Recipes: load a file, apply typed overrides, write the resolved result as JSON."""

import difflib
import re
import runpy
import sys
from dataclasses import fields
from pathlib import Path

from unimm.arguments import read_arguments
from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe


def load_recipe(path: str | Path) -> Recipe:
    """The recipe of a .py file, of a resolved .json, or of a run folder.

    Raises ConfigError, worded for the person who wrote the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "recipe.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe; give a recipe file such as recipes/demo.py, or a run's folder")
    if path.suffix == ".json":
        return recipe_from_json(path.read_bytes(), str(path))
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a recipe is a .py file or a resolved .json")
    beside = str(Path.cwd())
    sys.path.insert(0, beside)  # recipes name each other as recipes.x, from the project's root
    try:
        found = runpy.run_path(str(path)).get("recipe")
    except TypeError as error:
        raise ConfigError(f"{path}: {_explained(str(error))}") from None
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from None
    except (ConfigError, ImportError, NameError) as error:
        raise ConfigError(f"{path}: {error}") from None
    finally:
        sys.path.remove(beside)
    if not isinstance(found, Recipe):
        raise ConfigError(f"{path}: defines no `recipe = Recipe(...)`")
    return found


def _explained(message: str) -> str:
    """A constructor's complaint about a field, with the field that was probably meant."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if not found:
        return message
    name, wrong = found.groups()
    modules = [module for place, module in sys.modules.items() if place.startswith("unimm.config.")]
    known = next(([f.name for f in fields(vars(module)[name])] for module in modules if name in vars(module)), [])
    close = difflib.get_close_matches(wrong, known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(known)}"
    return f"{name} has no field {wrong!r}; {meant}"


def apply_overrides(recipe: Recipe, arguments: list[str], command: str) -> Recipe:
    """The recipe with typed dotted overrides such as `--stages.sft.steps 100`.

    Raises ArgumentError naming an unknown field and the nearest known one, or a value out of range.
    `--help` prints every field and exits.
    """
    if not arguments:
        return recipe
    from tyro.conf import AvoidSubcommands

    return read_arguments(AvoidSubcommands[Recipe], arguments, command, default=recipe)


def recipe_to_json(recipe: Recipe) -> str:
    """Every field of the recipe, defaults included: what a run saves and a report shows."""
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe).dump_json(recipe, indent=2).decode()


def recipe_from_json(text: str | bytes, where: str) -> Recipe:
    """The inverse of `recipe_to_json`; refuses unknown fields and wrong types with their place."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Recipe).validate_json(text, extra="forbid")
    except ValidationError as error:
        first = _of_its_kind(error.errors())
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(": ".join(filter(None, (where, place, first["msg"])))) from None


def _of_its_kind(errors: list) -> dict:
    """The first error that isn't about a class which the value, by its `kind` or `objective`, never meant to be."""
    tags = ("kind", "objective")
    strangers = [e["loc"][:-1] for e in errors if e["type"] == "literal_error" and e["loc"][-1] in tags]
    meant = [e for e in errors if not any(e["loc"][:len(other)] == other for other in strangers)]
    return (meant or errors)[0]
