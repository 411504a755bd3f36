"""Commands around a run: what it will be and will take, its training, its checkpoints, its ways in and out.

A command is a small class: its fields are what it takes, `execute` what it does, returning its exit code or None for 0.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe


def load(path: Path, overrides: list[str]) -> Recipe:
    from unimm.recipe import apply_overrides, load_recipe

    return apply_overrides(load_recipe(path), overrides, f"unimm train {path}")


@dataclass(frozen=True)
class Show:
    """Print a recipe: its axes, its stages, one rendered sample per task with what is learned marked. Or how a picture
    was drawn."""

    recipe: Positional[Path]
    """A recipe file such as recipes/demo.py, or a run's folder. Any field of it can be changed: --backbone.width 384.
    Or a PNG that `unimm sample` wrote."""
    json: bool = False
    """Print the resolved recipe, or what the picture says of itself, as JSON instead."""

    def execute(self, overrides: list[str]) -> None:
        if self.recipe.suffix == ".png":
            print(self._of_picture())
            return
        recipe = load(self.recipe, overrides)
        if self.json:
            from unimm.recipe import recipe_to_json

            print(recipe_to_json(recipe))
            return
        from unimm.show import show

        for line in show(recipe, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ):
            print(line)

    def _of_picture(self) -> str:
        from unimm.pictures import facts_of

        facts = facts_of(self.recipe)
        if not facts:
            raise ConfigError(f"{self.recipe} does not say how it was drawn, as whole pictures of `unimm sample` do")
        return json.dumps(facts, indent=1) if self.json else "\n".join(f"{key}: {said}" for key, said in facts.items())


@dataclass(frozen=True)
class Plan:
    """Say on paper what a recipe takes on a cluster: memory of a GPU by part, days, disk; nothing is run."""

    recipe: Positional[Path]
    """A recipe file, or a run's folder. Any field of it can be changed: --stages.sft.zero 2 --stages.sft.micro 4"""
    gpus: int | None = None
    """How many, over all nodes; one node's by default."""
    gpu: str = "h200"
    """Which, by its name in unimm/hardware.py."""
    nodes: int = 1
    """How many nodes, where --gpus is not said."""
    gpus_per_node: int = 8
    mfu: float = 0.4
    """Share of the peak that is assumed to be reached, recomputation counted."""
    document: int = 0
    """Tokens of a document on average; 0: the longest image with a caption."""
    images: int = 1_000_000
    """Images of a dataset, where the recipe does not say."""
    json: bool = False
    """Print every number as JSON instead."""

    def execute(self, overrides: list[str]) -> None:
        recipe = load(self.recipe, overrides)
        from unimm.hardware import gpu_named
        from unimm.plan.plan import Cluster, plan, text_of_plan

        gpus = self.nodes * self.gpus_per_node if self.gpus is None else self.gpus
        cluster = Cluster(gpus=gpus, per_node=self.gpus_per_node, gpu=gpu_named(self.gpu), mfu=self.mfu)
        folder = self.recipe if self.recipe.is_dir() else None
        found = plan(recipe, cluster, folder, self.document, self.images)
        print(json.dumps(found, indent=2) if self.json else text_of_plan(found))


@dataclass(frozen=True)
class Train:
    """Train a recipe's stages in order, or go on where an interrupted run stopped."""

    recipe: Positional[Path]
    """A recipe file, or the folder of a run to continue. Any field of it can be changed: --stages.sft.steps 100"""
    out: Path | None = None
    """The run's folder; runs/NAME by default."""
    stage: str | None = None
    """Stop after this stage."""

    def execute(self, overrides: list[str]) -> int | None:
        recipe = load(self.recipe, overrides)
        from unimm.pipeline import train_run
        from unimm.train import ranks
        from unimm.train.signals import Interrupted

        folder = self.out or (self.recipe if self.recipe.is_dir() else Path("runs") / recipe.name)
        try:
            train_run(recipe, folder, self.stage)
        except Interrupted as stopped:
            if ranks.rank() == 0:
                print(stopped, file=sys.stderr)
            ranks.barrier()  # all are here: none may leave, and have the launcher end the others, before 0 has spoken
            return stopped.code


@dataclass(frozen=True)
class Status:
    """Say how a run went. Exit code: 0 done, 75 start it again, 1 failed, 3 running, or killed without a word."""

    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print status.json with the errors of all ranks instead."""

    def execute(self) -> int:
        from unimm.status import code_of, describe, read_status

        status = read_status(self.run)
        print(json.dumps(status, indent=1) if self.json else "\n".join(describe(self.run, status)))
        return code_of(status)


@dataclass(frozen=True)
class Encode:
    """Turn the pixels of a run's datasets into codes, once, with the run's trained image tokenizer."""

    run: Positional[Path]
    """The run's folder."""
    data: str | None = None
    """Only this dataset of the recipe."""

    def execute(self) -> None:
        from unimm.pipeline import encode_run

        encode_run(load(self.run, []), self.run, self.data)


@dataclass(frozen=True)
class CheckpointList:
    """A run's checkpoints in a table: stage, step, when, size, ranks, ZeRO stage, whole or not."""

    run: Positional[Path]
    """The run's folder."""
    quick: FlagCreatePairsOff[bool] = False
    """Compare the files' sizes only, instead of reading every byte."""

    def execute(self) -> None:
        from unimm.checkpoint.listing import table

        print(*table(self.run, every_byte=not self.quick), sep="\n")


@dataclass(frozen=True)
class CheckpointVerify:
    """Read every byte of a checkpoint, or of all in a run, against its checksums; exit code 2 names faulty files."""

    path: Positional[Path]
    """A checkpoint's folder, a stage's, or a run's."""

    def execute(self) -> None:
        from unimm.checkpoint.listing import check_all

        for line in check_all(self.path):
            print(line)


@dataclass(frozen=True)
class CheckpointExport:
    """Write a run without its training state: weights, recipe and tokenizers, for sample, chat and eval."""

    run: Positional[Path]
    """The run's folder."""
    out: Positional[Path]
    """A folder to be made."""
    stage: str | None = None
    """The language stage to take; the latest by default."""
    step: int | None = None
    """Its checkpoint of this step; the newest whole one by default."""
    ema: FlagCreatePairsOff[bool] = False
    """The averaged weights, and nothing else; by default they are taken where the stage has them."""
    trained: FlagCreatePairsOff[bool] = False
    """The weights as trained, not their average."""

    def execute(self) -> None:
        from unimm.export import export_run

        if self.ema and self.trained:
            raise ConfigError("--ema and --trained are two kinds of weights; export them into two folders")
        export_run(self.run, self.out, self.stage, self.step, True if self.ema else False if self.trained else None)
        print(f"exported: {self.out}\nnext: unimm sample {self.out} \"a prompt\"")


@dataclass(frozen=True)
class Checkpoint:
    """List, verify or export the checkpoints of a run."""

    do: OmitSubcommandPrefixes[OmitArgPrefixes[
        Annotated[CheckpointList, subcommand("list")] | Annotated[CheckpointVerify, subcommand("verify")]
        | Annotated[CheckpointExport, subcommand("export")]]]

    def execute(self) -> None:
        self.do.execute()


@dataclass(frozen=True)
class Convert:
    """Turn a published checkpoint into a run, or a run into a folder that transformers and vLLM load."""

    source: Positional[str]
    """A folder in transformers' format or a hub id; or a run's folder."""
    out: Positional[Path]
    """A folder to be made: a run's, or one in transformers' format."""
    recipe: Path | None = None
    """The system that a published checkpoint is or begins; the folder's own where `unimm convert` wrote it."""
    unpickle: FlagCreatePairsOff[bool] = False
    """Read pickles too (.bin, .pt, .ckpt), as tensors only: whatever else they hold is refused."""
    adapters: Literal["merged", "kept"] = "merged"
    """LoRA into the weights, or beside them in OUT/adapter, in peft's format."""
    dtype: Literal["as_is", "float32", "bfloat16", "float16"] = "as_is"
    """The type of weights in transformers' format."""
    split: str = "5GB"
    """The most bytes of one file in transformers' format."""

    def execute(self) -> None:
        from unimm.convert.bring import bring
        from unimm.convert.give import give
        from unimm.convert.source import ConvertError, is_run

        if is_run(self.source):
            if self.recipe or self.unpickle:
                raise ConvertError(f"{self.source} is a run, which has its recipe; --recipe and --unpickle are for "
                                   "checkpoints in transformers' format")
            give(Path(self.source), self.out, self.adapters, self.dtype, self.split)
            print(f"converted: {self.out}\nnext: AutoModelForCausalLM.from_pretrained({str(self.out)!r})")
            return
        if (self.adapters, self.dtype, self.split) != ("merged", "as_is", "5GB"):
            raise ConvertError(f"{self.source} is a checkpoint in transformers' format, whose tensors are kept as they "
                               "are; --adapters, --dtype and --split are for runs")
        bring(self.source, self.out, load(self.recipe, []) if self.recipe else None, self.unpickle)
        print(f"converted: {self.out}\nnext: unimm sample {self.out} \"a prompt\", unimm train {self.out}")
