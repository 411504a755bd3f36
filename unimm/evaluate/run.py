"""`unimm eval`: score a trained run and write report.json and report.html into its folder."""

import json
import os
import platform
import time
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

from data import emoji_scores, shapes_scores
from unimm.config.recipe import Recipe
from unimm.config.stages import NextToken
from unimm.disk import replace_file
from unimm.evaluate.report import page
from unimm.evaluate.scores import Bar, EvaluationError, Metrics, Scores, look_up
from unimm.evaluate.tokenizer_scores import Subject
from unimm.images.tokenizer import load_tokenizer
from unimm.recipe import recipe_to_json
from unimm.system import System


def evaluate(system: System, count: int = 200, seed: int = 0, features: Path | None = None) -> dict:
    """What report.json holds; `count` is how many of each kind are scored. Both files are whole or not there.

    `features` is the folder of a vision encoder (as `unimm.published.vision` reads it) that reconstructions are
    compared with their originals by; the run's own by default.
    Raises EvaluationError for a count that can't be had, OSError where the folder can't be written.
    """
    if count < 1:
        raise EvaluationError(f"--count is {count}; score at least one of each kind")
    began, recipe, folder = time.monotonic(), system.recipe, system.folder
    scores, bars = _score(system, Subject.of(system, features), count, seed)
    metrics = {name: _lines(folder / name / "metrics.jsonl") for name in recipe.stages}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = Path(os.path.relpath(folder)).as_posix()
    kept = folder / "seconds.json"
    seconds = json.loads(kept.read_text()) if kept.is_file() else {}
    # Writing the page is the last step and can't be in the page: a few tenths of a second.
    seconds = {name: round(value, 2) for name, value in (seconds | {"evaluate": time.monotonic() - began}).items()}
    report = {
        "name": recipe.name, "about": recipe.about, "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": {"cores": cores, "system": platform.system(), "processor": platform.machine(),
                    "python": platform.python_version(), "torch": version("torch")},
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in (
            ("language_model", system.model), ("image_tokenizer", system.tokenizer)) if part},
        "checkpoint": "/".join(system.checkpoint.parts[-2:]),
        "vocabulary": {"text": system.layout.vocab.text_size,
                       **{name: r.codes for name, r in system.layout.vocab.ranges.items()}},
        **scores.values, "counts": scores.counts,
        "sampling": {**asdict(recipe.sampling), "guided": True, "count": count, "seed": seed},
        **_training(recipe, metrics),
        "reproduce": [f"unimm train {place}/recipe.json --out runs/again",
                      f"unimm eval runs/again --count {count} --seed {seed}"],
        "recipe": json.loads(recipe_to_json(recipe)), "seconds": seconds | {"total": round(sum(seconds.values()), 2)}}
    found = [(bar, value) for bar in bars if (value := look_up(report, bar.key)) is not None]
    report["bars"] = {bar.key: {"bar": bar.bar, "sense": bar.sense, "met": bar.met(value)} for bar, value in found
                      if bar.bar is not None}
    replace_file(kept, json.dumps(seconds, indent=1).encode())
    replace_file(folder / "report.json", json.dumps(report, indent=1).encode())
    replace_file(folder / "report.html", page(report, found, scores, metrics).encode())
    for bar, value in found:
        goal = "" if bar.bar is None else f"  {'>=' if bar.sense == 'at_least' else '<='} {bar.bar:g}"
        print(f"  {bar.key:<24}{value:>9.4g}{goal:<9}{'' if bar.met(value) else '  missed'}")
    print(f"report: {folder / 'report.html'} and report.json")
    return report


def evaluate_tokenizer(folder: Path, count: int = 200, seed: int = 0, features: Path | None = None) -> None:
    """Print the measures of an image tokenizer that is in no run, on scenes of shapes, and write them into report.json
    in its folder. Raises EvaluationError for a count that can't be had."""
    scores = shapes_scores.tokenizer_scores(Subject(load_tokenizer(folder), features=features), count, seed)
    report = {"tokenizer": scores.values["tokenizer"], "counts": scores.counts}
    replace_file(folder / "report.json", json.dumps(report, indent=1).encode())
    print(json.dumps(report["tokenizer"], indent=1))


def _score(system: System, subject: Subject, count: int, seed: int) -> tuple[Scores, tuple[Bar, ...]]:
    match system.recipe.judge:
        case "shapes":
            return shapes_scores.score(system, subject, count, seed), shapes_scores.BARS
        case "emoji":
            return emoji_scores.score(system, subject, count, seed), emoji_scores.BARS
        case "none":
            return Scores(), ()
        case _:
            assert_never(system.recipe.judge)


def _training(recipe: Recipe, metrics: Metrics) -> dict:
    """Of each stage: how far it went, how fast (tokens or images a second, its own time only), its last losses."""
    found: dict = {"tokens_per_second": {}, "images_per_second": {}, "stages": {}}
    for name, lines in metrics.items():
        if rated := [line for line in lines if "tokens_per_second" in line]:
            last, unit = rated[-1], "tokens" if isinstance(recipe.stages[name], NextToken) else "images"
            found[f"{unit}_per_second"][name] = round(last["tokens"] / max(last["seconds"], 1e-9), 1)
            found["stages"][name] = {"steps": last["step"], unit: last["tokens"], "seconds": last["seconds"],
                                     **{key: value for key, value in last.items() if key.startswith("loss")}}
    return found


def _lines(path: Path) -> list[dict[str, float]]:
    """The whole lines of a JSONL file, none where there is no file."""
    whole = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in whole if line.endswith("\n")]
