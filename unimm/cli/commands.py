"""Commands around a run: what it will be and will take, its training, its checkpoints, its ways in and out.

A command is a function: its parameters are what it takes, and it returns its exit code or None for 0. `overrides` are
the options that it does not know itself: changes of the recipe's fields.
"""

import os
import sys
from json import dumps
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress

from unimm.arguments import one_of
from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe

Overrides = Suppress[tuple[str, ...]]


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    from unimm.recipe import apply_overrides, load_recipe

    return apply_overrides(load_recipe(path), list(overrides), f"unimm train {path}")


def show(recipe: Positional[Path], json: bool = False, overrides: Overrides = ()) -> None:
    """Print a recipe: its axes, its stages, one rendered sample per task with what is learned marked. Or how a picture
    was drawn.

    Args:
        recipe: A recipe file such as recipes/demo.py, or a run's folder. Any field of it can be changed:
            --backbone.width 384. Or a PNG that `unimm sample` wrote.
        json: Print the resolved recipe, or what the picture says of itself, as JSON instead.
    """
    if recipe.suffix == ".png":
        from unimm.pictures import facts_of

        facts = facts_of(recipe)
        if not facts:
            raise ConfigError(f"{recipe} does not say how it was drawn, as whole pictures of `unimm sample` do")
        print(dumps(facts, indent=1) if json else "\n".join(f"{key}: {said}" for key, said in facts.items()))
    elif json:
        from unimm.recipe import recipe_to_json

        print(recipe_to_json(load(recipe, overrides)))
    else:
        from unimm.show import show as shown

        for line in shown(load(recipe, overrides), colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ):
            print(line)


def plan(recipe: Positional[Path], gpus: int | None = None, gpu: str = "h200", nodes: int = 1, gpus_per_node: int = 8,
         mfu: float = 0.4, document: int = 0, images: int = 1_000_000, json: bool = False,
         overrides: Overrides = ()) -> None:
    """Say on paper what a recipe takes on a cluster: memory of a GPU by part, days, disk; nothing is run.

    Args:
        recipe: A recipe file, or a run's folder. Any field of it can be changed: --stages.sft.zero 2
            --stages.sft.micro 4
        gpus: How many, over all nodes; one node's by default.
        gpu: Which, by its name in unimm/gpus.toml.
        nodes: How many nodes, where --gpus is not said.
        mfu: Share of the peak that is assumed to be reached, recomputation counted.
        document: Tokens of a document on average; 0: the longest image with a caption.
        images: Images of a dataset, where the recipe does not say.
        json: Print every number as JSON instead.
    """
    wanted = load(recipe, overrides)
    from unimm.hardware import gpu_named
    from unimm.plan import plan as plans

    cluster = plans.Cluster(gpus=nodes * gpus_per_node if gpus is None else gpus, per_node=gpus_per_node,
                            gpu=gpu_named(gpu), mfu=mfu)
    found = plans.plan(wanted, cluster, recipe if recipe.is_dir() else None, document, images)
    print(dumps(found, indent=2) if json else plans.text_of_plan(found))


def train(recipe: Positional[Path], out: Path | None = None, stage: str | None = None,
          overrides: Overrides = ()) -> int | None:
    """Train a recipe's stages in order, or go on where an interrupted run stopped.

    Args:
        recipe: A recipe file, or the folder of a run to continue. Any field of it can be changed:
            --stages.sft.steps 100
        out: The run's folder; runs/NAME by default.
        stage: Stop after this stage.
    """
    wanted = load(recipe, overrides)
    from unimm.pipeline import train_run
    from unimm.train import ranks
    from unimm.train.signals import Interrupted

    try:
        train_run(wanted, out or (recipe if recipe.is_dir() else Path("runs") / wanted.name), stage)
    except Interrupted as stopped:
        if ranks.rank() == 0:
            print(stopped, file=sys.stderr)
        ranks.barrier()  # all are here: none may leave, and have the launcher end the others, before 0 has spoken
        return stopped.code


def status(run: Positional[Path], json: bool = False) -> int:
    """Say how a run went. Exit code: 0 done, 75 start it again, 1 failed, 3 running, or killed without a word.

    Args:
        run: The run's folder.
        json: Print status.json with the errors of all ranks instead.
    """
    from unimm.status import code_of, describe, read_status

    found = read_status(run)
    print(dumps(found, indent=1) if json else "\n".join(describe(run, found)))
    return code_of(found)


def encode(run: Positional[Path], data: str | None = None) -> None:
    """Turn the pixels of a run's datasets into codes, once, with the run's trained image tokenizer.

    Args:
        run: The run's folder.
        data: Only this dataset of the recipe.
    """
    from unimm.pipeline import encode_run

    encode_run(load(run), run, data)


def list_checkpoints(run: Positional[Path], quick: FlagCreatePairsOff[bool] = False) -> None:
    """A run's checkpoints in a table: stage, step, when, size, ranks, ZeRO stage, whole or not.

    Args:
        run: The run's folder.
        quick: Compare the files' sizes only, instead of reading every byte.
    """
    from unimm.checkpoint.listing import table

    print(*table(run, every_byte=not quick), sep="\n")


def verify(path: Positional[Path]) -> None:
    """Read every byte of a checkpoint, or of all in a run, against its checksums; exit code 2 names faulty files.

    Args:
        path: A checkpoint's folder, a stage's, or a run's.
    """
    from unimm.checkpoint.listing import check_all

    for line in check_all(path):
        print(line)


def export(run: Positional[Path], out: Positional[Path], stage: str | None = None, step: int | None = None,
           ema: FlagCreatePairsOff[bool] = False, trained: FlagCreatePairsOff[bool] = False) -> None:
    """Write a run without its training state: weights, recipe and tokenizers, for sample, chat and eval.

    Args:
        run: The run's folder.
        out: A folder to be made.
        stage: The language stage to take; the latest by default.
        step: Its checkpoint of this step; the newest whole one by default.
        ema: The averaged weights, and nothing else; by default they are taken where the stage has them.
        trained: The weights as trained, not their average.
    """
    from unimm.export import export_run

    if ema and trained:
        raise ConfigError("--ema and --trained are two kinds of weights; export them into two folders")
    export_run(run, out, stage, step, True if ema else False if trained else None)
    print(f"exported: {out}\nnext: unimm sample {out} \"a prompt\"")


CHECKPOINT = one_of({"list": list_checkpoints, "verify": verify, "export": export})


def checkpoint(do: OmitSubcommandPrefixes[OmitArgPrefixes[CHECKPOINT]]) -> None:
    """List, verify or export the checkpoints of a run."""
    do()


def convert(source: Positional[str], out: Positional[Path], recipe: Path | None = None,
            unpickle: FlagCreatePairsOff[bool] = False, adapters: Literal["merged", "kept"] = "merged",
            dtype: Literal["as_is", "float32", "bfloat16", "float16"] = "as_is", split: str = "5GB") -> None:
    """Turn a published checkpoint into a run, or a run into a folder that transformers and vLLM load.

    Args:
        source: A folder in transformers' format or a hub id; or a run's folder.
        out: A folder to be made: a run's, or one in transformers' format.
        recipe: The system that a published checkpoint is or begins; the folder's own where `unimm convert` wrote it.
        unpickle: Read pickles too (.bin, .pt, .ckpt), as tensors only: whatever else they hold is refused.
        adapters: LoRA into the weights, or beside them in OUT/adapter, in peft's format.
        dtype: The type of weights in transformers' format.
        split: The most bytes of one file in transformers' format.
    """
    from unimm.convert.convert import bring, give
    from unimm.convert.releases import ConvertError, is_run

    if is_run(source):
        if recipe or unpickle:
            raise ConvertError(f"{source} is a run, which has its recipe; --recipe and --unpickle are for checkpoints "
                               "in transformers' format")
        give(Path(source), out, adapters, dtype, split)
        print(f"converted: {out}\nnext: AutoModelForCausalLM.from_pretrained({str(out)!r})")
        return
    if (adapters, dtype, split) != ("merged", "as_is", "5GB"):
        raise ConvertError(f"{source} is a checkpoint in transformers' format, whose tensors are kept as they are; "
                           "--adapters, --dtype and --split are for runs")
    bring(source, out, load(recipe) if recipe else None, unpickle)
    print(f"converted: {out}\nnext: unimm sample {out} \"a prompt\", unimm train {out}")


def systems(recipes: Path = Path("recipes/toys"), results: Path = Path("docs/systems.json")) -> None:
    """Print the systems of a folder of recipes: axes, tokens of an image, and what they reached where trained.

    Args:
        recipes: The folder of recipes.
        results: What tools/run_systems.py wrote.
    """
    from unimm.systems import read_recipes, read_results, table

    found = read_recipes(recipes)
    if not found:
        raise ConfigError(f"{recipes} holds no recipes; give a folder such as recipes/toys")
    rows = table(found, read_results(results)["systems"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
