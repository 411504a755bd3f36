"""The code's own rules, read from its syntax trees: who imports whom, how long things are, what recipes may say."""

import ast
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("unimm", "recipes", "data", "tests", "tools")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
}
LIBRARY = [path for path in TREES if path.parts[0] in ("unimm", "recipes", "data")]

# From the ground up. A part imports what lies below its own line, never a part beside it, also not late.
LAYERS = (
    "errors",
    "disk",
    "sample, arguments, words, weights, pictures, config, hardware, status",
    "text, vocab, losses, published",
    "grammar",
    "turns, form",
    "layout",
    "images, model, diffusion, recipe, stream",
    "checkpoint",
    "system",
    "train, generate",
    "show, plan, systems",
    "picture_stages",
    "pipeline, evaluate, serve, export",
    "api, convert",
    "cli",
    "__main__",
)
HEIGHT = {part: n for n, line in enumerate(LAYERS) for part in line.split(", ")}

# The package that installs a module, where the two differ in name.
INSTALLED_BY = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "flash_attn": "flash-attn-4",  # flash-attn has the same name to import
    "liger_kernel": "liger-kernel",
    "torch.utils.tensorboard": "tensorboard",
    "vector_quantize_pytorch": "vector-quantize-pytorch",
}
RUN_NOT_IMPORTED = {"ruff", "pytest-xdist", "accelerate"}
HEAVY = (
    "torch",
    "transformers",
    "diffusers",
    "deepspeed",
    "peft",
    "datasets",
    "grain",
    "pyarrow",
    "sentencepiece",
    "tensorboard",
    "matplotlib",
)


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say the module's whole name"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= submodules or {node.module}
    return found


MODULES = {module_of(path) for path in TREES}
OWN = {path.parts[0] for path in TREES} | {p.with_suffix("").name for path in TREES for p in (path, path.parent)}


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_imports_run_one_way(path):
    package, part = path.parts[0], path.with_suffix("").parts[1]
    ours = [m.split(".") for m in imports(path) if m.split(".")[0] in ("unimm", "recipes", "data", "tests", "tools")]
    assert package != "unimm" or part in HEIGHT or not ours, f"{path}: give unimm/{part} its line in LAYERS"
    for other, *rest in ours:
        match package, other:
            case "unimm", "unimm":
                allowed = rest[0] == part or HEIGHT[rest[0]] < HEIGHT[part]
            case "unimm", "data":
                allowed = HEIGHT[part] >= HEIGHT["stream"]
            case "recipes", "unimm":
                allowed = rest[0] == "config"
            case "data", "unimm" if part.endswith("_scores"):  # what a world asks of a model: beside `evaluate`
                allowed = rest[0] == "evaluate" or HEIGHT[rest[0]] < HEIGHT["evaluate"]
            case "data", "unimm":
                allowed = rest[0] in ("sample", "errors")
            case _:
                allowed = package == other
        assert allowed, f"{path} may not import {'.'.join([other, *rest])}"


def test_no_import_runs_in_a_circle():
    graph = {module_of(path): imports(path) & MODULES for path in LIBRARY}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_data_and_recipes_stand_on_little():
    allowed = {"data": {"numpy", "PIL", "unimm", "data"}, "recipes": {"unimm", "recipes"}}
    for path in LIBRARY:
        outside = {m.split(".")[0] for m in imports(path)} - set(sys.stdlib_module_names)
        assert outside <= allowed.get(path.parts[0], outside), path


def test_every_package_is_declared_and_every_declaration_is_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.match(r"[\w-]+", line).group() for line in project["dependencies"]}
    dev, gpu = ({re.match(r"[\w-]+", line).group() for line in project["optional-dependencies"][extra]}
                for extra in ("dev", "gpu"))
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for path in TREES:
        for module in imports(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in OWN:
                used[path in LIBRARY].add(INSTALLED_BY.get(module, INSTALLED_BY.get(top, top)))
    assert used[True] - gpu == core and gpu <= used[True] | used[False]  # tools compare with what a GPU has
    assert used[False] - core - gpu == dev - RUN_NOT_IMPORTED


def test_packages_re_export_nothing():
    for path in LIBRARY:
        assert path.name != "__init__.py" or not (ROOT / path).read_text(), f"{path} must be empty"
    folders = {path.parent for path in LIBRARY}
    assert {folder for folder in folders if folder / "__init__.py" not in TREES} == set()


@pytest.mark.parametrize(
    "name",
    [
        "sample",
        "vocab",
        "layout",
        "grammar",
        "turns",
        "form",
        "recipe",
        "text",
        "show",
        "hardware",
        "cli.main",
        *(f"config.{path.stem}" for path in LIBRARY if path.parts[1] == "config"),
    ],
)
def test_light_modules_import_nothing_heavy(name):
    script = f"import sys, unimm.{name}; print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


DECLARATIONS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
DECISIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp, ast.NamedExpr, ast.Await)


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.parts[0] == "recipes" and p.name != "__init__.py"], ids=str)
def test_recipes_only_declare(path):
    docstring, *statements = TREES[path].body
    assert ast.get_docstring(TREES[path]), "begin with what it is and where its numbers come from"
    for node in statements:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert text or isinstance(node, DECLARATIONS), f"line {node.lineno}: a recipe holds assignments only"
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, DECISIONS), f"line {node.lineno}: a recipe decides nothing"


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.parts[:2] in (("recipes", "systems"), ("recipes", "toys"))],
                         ids=str)
def test_a_system_is_a_short_file(path):
    assert len((ROOT / path).read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_importing_does_nothing(path):
    """Only definitions and values at the top of a module: nothing is opened, registered or changed elsewhere."""
    for node in TREES[path].body:
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), f"{path}:{node.lineno}"
            continue
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        entry = path.name == "__main__.py" and isinstance(node, ast.Expr)
        allowed = (
            *DECLARATIONS,
            ast.FunctionDef,
            ast.ClassDef,
            ast.TypeAlias if sys.version_info >= (3, 12) else ast.Assign,
        )
        assert text or entry or isinstance(node, allowed), f"{path}:{node.lineno}: acts when imported"
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assert all(isinstance(t, (ast.Name, ast.Tuple)) for t in targets), (
                f"{path}:{node.lineno}: changes another object"
            )
            calls = {ast.unparse(c.func) for c in ast.walk(node) if isinstance(c, ast.Call)}
            assert not calls & {"open", "print", "exec", "eval"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_files_and_functions_are_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= 400
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno}: {node.name}"


def lines_of_code(path: Path) -> int:
    """Lines that do something: neither blank nor comment nor docstring."""
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    with open(ROOT / path, encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            lines |= set(range(token.start[0], token.end[0] + 1)) if token.type not in silent else set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_library_is_small():
    """Readable in an evening: ten systems, their training, sampling and serving within this bound."""
    assert sum(lines_of_code(path) for path in LIBRARY if path.parts[0] == "unimm") < 10_000


def test_all_systems_share_one_trainer_one_sampler_one_layout_and_one_stream():
    """What published systems each have a copy of is defined once, and no file of it is named after a system."""
    once = {"run_stage": "train", "Engine": "train", "decode": "generate", "Layout": "layout.py",
            "Automaton": "grammar.py", "make_batch": "stream", "Batches": "stream", "UnifiedModel": "model"}
    found = {name: [path.parts[1] for path in LIBRARY if path.parts[:2] != ("unimm", "config")
                    for node in TREES[path].body if getattr(node, "name", None) == name] for name in once}
    assert {name: places for name, places in found.items() if places != [once[name]]} == {}
    systems = {path.stem for path in LIBRARY if path.parts[:2] == ("recipes", "toys")} - {"base", "__init__"}
    shared = [path for path in LIBRARY if path.parts[1] in ("train", "generate", "stream", "layout.py", "grammar.py")]
    for path in shared:
        names = {node.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Name)}
        said = {node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant)}
        assert path.stem not in systems and not systems & (names | said), f"{path} knows a system by its name"


def test_every_field_of_a_recipe_is_read_somewhere():
    """Defect 9: options that are documented and do nothing."""
    templates = [path.read_text(encoding="utf-8") for path in (ROOT / "unimm").rglob("*.txt.jinja")]
    read = set(re.findall(r"\.(\w+)", " ".join(templates)))
    for path, tree in TREES.items():
        if path.parts[0] == "unimm" and path.parts[1] != "config":
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
                elif isinstance(node, ast.MatchClass):
                    read |= set(node.kwd_attrs)
    unread = set()
    for path in LIBRARY:
        if path.parts[:2] == ("unimm", "config"):
            module = import_module(module_of(path))
            classes = [c for c in vars(module).values() if is_dataclass(c) and c.__module__ == module.__name__]
            # `kind` is the tag by which JSON tells one class from another, read by pydantic.
            unread |= {f"{c.__name__}.{f.name}" for c in classes for f in fields(c) if f.name not in read | {"kind"}}
    assert unread == set()


def test_nothing_names_a_place_on_somebodys_machine():
    places = re.compile(
        "|".join(["/(work|root)/", "/(home|Users)/[a-z]", "(pypi|pythonhosted)" + r"\.org", "download" + r"\.pytorch"])
    )
    kept = {".git", ".venv", "runs", "build", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache"}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in kept and not f.endswith(".egg-info")]
        for name in files:
            path = Path(folder) / name
            if (
                path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".yml", "")
                and path != Path(__file__)
                and name != ".git"
            ):
                found = places.search(path.read_text(encoding="utf-8", errors="replace"))
                assert not found, f"{path.relative_to(ROOT)}: {found.group()}"
