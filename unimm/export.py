"""A trained run without what only training needs: a folder to keep, to move, and to open like a run.

    model.safetensors   the model's weights (split with an index above 5 GB)
    recipe.json, text.model, image_tokenizer/, image_decoder/, backbone/, vision/   as in the run, where it has them
    export.json         run, stage, step and which weights
    manifest.json       size and sha256 of every file; written last
"""

import json
from collections.abc import Iterable
from pathlib import Path

from unimm import system
from unimm.checkpoint.folders import CheckpointError, final_of, verify, write_manifest
from unimm.checkpoint.read import newest, read_state, read_weights
from unimm.config.check import ConfigError
from unimm.disk import Digest, copy_file, new_folder, write_file
from unimm.recipe import load_recipe
from unimm.weights import write_weights


def export_run(run: Path, out: Path, stage: str | None = None, step: int | None = None,
               ema: bool | None = None) -> None:
    """Write the weights of a run's language model, its recipe and its tokenizers into the new folder `out`.

    Takes the newest whole checkpoint of the latest language stage unless `stage` and `step` say otherwise; `ema`
    as in `read_weights`. Raises ConfigError, CheckpointError, DiskError; `out` then does not exist.
    """
    recipe = load_recipe(run)
    with new_folder(out, ConfigError, "export") as part:
        stages = list(recipe.language)
        if stage is not None and stage not in stages:
            raise ConfigError(f"no language stage {stage!r} in {run}; it has: {', '.join(stages)}")
        if step is None:
            source = newest(run / stage) if stage else system.language_of(recipe, run)
        else:
            places = (final_of(run / name, step) for name in reversed(stages) if stage in (None, name))
            source = next((place for place in places if place.is_dir()), None)
        if source is None or source == run:
            raise CheckpointError(f"{run}: no such checkpoint to export; see: unimm checkpoint list {run}")
        verify(source)
        weights, state = dict(read_weights(source, ema)), read_state(source)
        about = {"run": run.resolve().name, "stage": state["stage"], "step": state["step"],
                 "weights": {None: "as the stage left them", True: "averaged", False: "trained on"}[ema]}
        said = write_file(part / system.EXPORT_FILE, [json.dumps(about, indent=1).encode()])
        folders = (system.TOKENIZER_FOLDER, system.DECODER_FOLDER, system.BACKBONE_FOLDER, system.VISION_FOLDER)
        inside = [file for name in folders for file in (run / name).rglob("*")]
        small = copy_files([run / system.RECIPE_FILE, run / system.TEXT_FILE, *inside], run, part)
        write_manifest(part, small | write_weights(part, weights) | {system.EXPORT_FILE: said})


def copy_files(files: Iterable[Path], source: Path, target: Path) -> dict[str, Digest]:
    """Copy those of `files` that are any from `source` to the same places, at any depth, in `target`; what was written,
    by its path within."""
    digests = {}
    for file in files:
        if file.is_file():
            name = file.relative_to(source)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            digests[name.as_posix()] = copy_file(file, target / name)
    return digests
