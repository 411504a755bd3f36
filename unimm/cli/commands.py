"""The commands, from what a run will be and will take to its training, its checkpoints, its use, its ways in and out.

A command is a function: its parameters are what it takes, and it returns its exit code or None for 0. `overrides` are
the options that it does not know itself: changes of the recipe's fields.
"""

import os
import sys
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, arg

from unimm.arguments import one_of
from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe
from unimm.config.sampling import Sampling

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
    from unimm.train import ranks, signals

    try:
        train_run(wanted, out or (recipe if recipe.is_dir() else Path("runs") / wanted.name), stage)
    except signals.Interrupted as stopped:
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


def list_(run: Positional[Path], quick: FlagCreatePairsOff[bool] = False) -> None:
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


CHECKPOINT = one_of(list_, verify, export)


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
            raise ConvertError(f"{source} is a run, which has its recipe; give no --recipe and no --unpickle")
        give(Path(source), out, adapters, dtype, split)
        print(f"converted: {out}\nnext: AutoModelForCausalLM.from_pretrained({str(out)!r})")
        return
    if (adapters, dtype, split) != ("merged", "as_is", "5GB"):
        raise ConvertError(f"{source} is no run: its tensors stay; --adapters, --dtype, --split are for runs")
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


class SamplingChange(TypedDict("SamplingChange", Sampling.settings(), total=False), total=False):
    """Differences from the sampling settings that the run was saved with.

    How far an image follows the prompt: guidance (1: not pushed), image-guidance (towards the context's images alone,
    0: off), negative (words to draw away from), positive (words added to the prompt). How an id of an image is chosen:
    temperature (0: the likeliest), top-k and top-p (0 and 1: all), min-p (least share of the likeliest's probability),
    adaptive-k (top-k by entropy); the same with text- before it for text, of at most text-length ids. window: ids read
    in one step; above 1, images take fewer steps and are the same.
    """


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What pictures are asked for in every command that draws."""

    n: Annotated[int, arg(aliases=["-n"])] = 4
    """Pictures per prompt, with seeds SEED, SEED + 1, ..."""
    seed: int = 0
    size: tuple[int, int] | None = None
    """Height and width in pixels of the image tokenizer; a decoder that enlarges makes so many times that."""
    aspect: str | None = None
    """Or width:height, such as 16:9: the nearest of the sizes that the run draws."""
    batch: int = 32
    """Pictures drawn at a time; fewer take less memory, more take less time a picture."""
    sampling: OmitArgPrefixes[SamplingChange]

    def said(self) -> dict[str, Any]:
        """The fields of an order that every prompt shares."""
        if self.size and self.aspect:
            raise ConfigError("--size and --aspect are two ways to say one thing; give one")
        return {"n": self.n, "seed": self.seed, "size": self.size or self.aspect}


def _apart(words: tuple[str, ...], what: str) -> tuple[tuple[str, ...], str]:
    """The files of pictures, and what is said about them."""
    *images, said = words or ("",)
    if not images or not said.strip() or os.path.isfile(said):
        raise ConfigError(f'give a picture and then the {what} in quotes: picture.png "..."')
    return tuple(images), said


def sample(run: Positional[Path], prompts: Positional[tuple[str, ...]] = (), file: Path | None = None,
           out: Path | None = None, layout: Literal["files", "geneval"] = "files",
           *, drawing: OmitArgPrefixes[Drawing]) -> None:
    """Draw pictures: single PNGs that say how they were drawn, and labelled grids. Started again, it draws what is not
    yet there; under torchrun, deepspeed or srun, each process draws its share.

    Args:
        run: The run's folder.
        prompts: What to draw, each in quotes; - reads standard input, one prompt a line.
        file: Prompts one a line, as text or as {"prompt": ..., "seed": ..., "n": ..., "size": [H, W],
            "negative": ...}.
        out: Where to write; RUN/samples by default, RUN/geneval in GenEval's layout.
        layout: geneval: OUT/00000/samples/0000.png beside metadata.jsonl, as its evaluation reads them.
    """
    from unimm.serve.files import draw_to_files, read_orders

    out = out or run / ("geneval" if layout == "geneval" else "samples")
    draw_to_files(run, read_orders(prompts, file, drawing.said()), out, drawing.sampling, drawing.batch,
                  layout == "geneval")


def edit(run: Positional[Path], words: Positional[tuple[str, ...]], out: Path | None = None, *,
         drawing: OmitArgPrefixes[Drawing]) -> None:
    """Change a picture as told; where it is written, and what is known of it there, is as with `sample`.

    Args:
        run: The run's folder.
        words: The picture's file, or several, and then the instruction in quotes.
        out: Where to write; RUN/edits by default.
    """
    from unimm.serve.files import Order, draw_to_files

    images, instruction = _apart(words, "instruction")
    orders = [Order(prompt=instruction, images=images, **drawing.said())]
    draw_to_files(run, orders, out or run / "edits", drawing.sampling, drawing.batch)


def ask(run: Positional[Path], words: Positional[tuple[str, ...]], seed: int = 0, *,
        sampling: OmitArgPrefixes[SamplingChange]) -> None:
    """Print the answer to a question about a picture.

    Args:
        run: The run's folder.
        words: The picture's file, or several, and then the question in quotes.
    """
    from unimm.api import Model
    from unimm.stream.pixels import load_pixels
    from unimm.system import recipe_of

    images, question = _apart(words, "question")
    shown = [load_pixels(file, file) for file in images]
    recipe_of(run).sampling.changed(**sampling)  # refused now, not once weights are read
    print(Model.load(run).ask(shown, question, seed, **sampling))


def continue_(run: Positional[Path], document: Positional[Path], images: int = 4, seed: int = 0,
              out: Path | None = None, *, sampling: OmitArgPrefixes[SamplingChange]) -> None:
    """Go on with a document of text and pictures, or with a chat: what the model writes behind it, pictures and all.

    Args:
        run: The run's folder.
        document: JSON: {"messages": [{"role": ..., "content": ...}]}, or {"parts": [{"type": "text", "text": ...},
            {"type": "image", "image": PATH}]} without speakers.
        images: The most pictures that it may draw.
        out: A folder for document.json and its pictures; DOCUMENT-continued by default.
    """
    from unimm.serve.documents import continue_file

    print(continue_file(run, document, out or document.with_name(f"{document.stem}-continued"), images, seed, sampling))


def chat(run: Positional[Path], seed: int = 0, out: Path | None = None) -> None:
    """Talk with a trained run in the terminal; name image files in what you say, and it writes image files.

    Args:
        run: The run's folder.
        out: Where its pictures go; RUN/chat by default.
    """
    from unimm.serve.documents import chat_in_terminal

    chat_in_terminal(run, seed, out)


def eval_(run: Positional[Path], count: int = 200, seed: int = 0, features: Path | None = None) -> None:
    """Score a trained run, or its image tokenizer where that is all there is; write report.html and report.json.

    Args:
        run: The run's folder, or that of an image tokenizer: runs/demo/image_tokenizer.
        count: Prompts, questions and scenes of each kind.
        features: The folder of a vision encoder to compare reconstructions by; the run's own, if any, by default.
    """
    from unimm.evaluate import run as scoring
    from unimm.system import RECIPE_FILE, open_run
    from unimm.train import ranks

    if (run / "config.json").is_file() and not (run / RECIPE_FILE).is_file():
        scoring.evaluate_tokenizer(run, count, seed, features)
    else:
        scoring.evaluate(open_run(run, ranks.device(), early=True), count, seed, features)


COMMAND = one_of(  # in the order of `unimm --help`: a run from its recipe to its use
    show, plan, train, status, checkpoint, encode, sample, edit, ask, continue_, chat, eval_, convert, systems)
