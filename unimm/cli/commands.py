"""What the `unimm` command takes: one small class for each thing that it does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from unimm.config.check import ConfigError


@dataclass(frozen=True)
class Show:
    """Print a recipe: its axes, its stages, one rendered sample per task with what is learned marked. Or how a picture
    was drawn."""

    recipe: Positional[Path]
    """A recipe file such as recipes/demo.py, or a run's folder. Any field of it can be changed: --backbone.width 384.
    Or a PNG that `unimm sample` wrote."""
    json: bool = False
    """Print the resolved recipe, or what the picture says of itself, as JSON instead."""


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


@dataclass(frozen=True)
class Train:
    """Train a recipe's stages in order, or go on where an interrupted run stopped."""

    recipe: Positional[Path]
    """A recipe file, or the folder of a run to continue. Any field of it can be changed: --stages.sft.steps 100"""
    out: Path | None = None
    """The run's folder; runs/NAME by default."""
    stage: str | None = None
    """Stop after this stage."""


@dataclass(frozen=True)
class Status:
    """Say how a run went. Exit code: 0 done, 75 start it again, 1 failed, 3 running, or killed without a word."""

    run: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print status.json with the errors of all ranks instead."""


@dataclass(frozen=True)
class Encode:
    """Turn the pixels of a run's datasets into codes, once, with the run's trained image tokenizer."""

    run: Positional[Path]
    """The run's folder."""
    data: str | None = None
    """Only this dataset of the recipe."""


@dataclass(frozen=True)
class SamplingChange:
    """Differences from the sampling settings that the run was saved with."""

    guidance: float | None = None
    image_guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    adaptive_k: int | None = None
    text_temperature: float | None = None
    text_top_k: int | None = None
    text_top_p: float | None = None
    text_min_p: float | None = None
    text_length: int | None = None
    positive: str | None = None
    negative: str | None = None
    window: int | None = None

    def said(self) -> dict[str, float | str]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What pictures are asked for in every command that draws."""

    n: Annotated[int, arg(aliases=["-n"])] = 4
    """Pictures per prompt, with seeds SEED, SEED + 1, ..."""
    seed: int = 0
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    aspect: str | None = None
    """Or width:height, such as 16:9: the nearest of the sizes that the run draws."""
    batch: int = 32
    """Pictures drawn at a time; fewer take less memory, more take less time a picture."""
    sampling: OmitArgPrefixes[SamplingChange] = SamplingChange()

    def said(self) -> dict[str, Any]:
        """The fields of an order that every prompt shares."""
        if self.size and self.aspect:
            raise ConfigError("--size and --aspect are two ways to say one thing; give one")
        return {"n": self.n, "seed": self.seed, "size": self.size or self.aspect}


@dataclass(frozen=True)
class Sample:
    """Draw pictures: single PNGs that say how they were drawn, and labelled grids. Started again, it draws what is not
    yet there; under torchrun, deepspeed or srun, each process draws its share."""

    run: Positional[Path]
    """The run's folder."""
    prompts: Positional[tuple[str, ...]]
    """What to draw, each in quotes; - reads standard input, one prompt a line."""
    file: Path | None = None
    """Prompts one a line, as text or as {"prompt": ..., "seed": ..., "n": ..., "size": [H, W], "negative": ...}."""
    out: Path | None = None
    """Where to write; RUN/samples by default, RUN/geneval in GenEval's layout."""
    layout: Literal["files", "geneval"] = "files"
    """geneval: OUT/00000/samples/0000.png beside metadata.jsonl, as its evaluation reads them."""
    drawing: OmitArgPrefixes[Drawing] = Drawing()


@dataclass(frozen=True)
class Edit:
    """Change a picture as told; where it is written, and what is known of it there, is as with `sample`."""

    run: Positional[Path]
    """The run's folder."""
    words: Positional[tuple[str, ...]]
    """The picture's file, or several, and then the instruction in quotes."""
    out: Path | None = None
    """Where to write; RUN/edits by default."""
    drawing: OmitArgPrefixes[Drawing] = Drawing()


@dataclass(frozen=True)
class Ask:
    """Print the answer to a question about a picture."""

    run: Positional[Path]
    """The run's folder."""
    words: Positional[tuple[str, ...]]
    """The picture's file, or several, and then the question in quotes."""
    seed: int = 0
    sampling: OmitArgPrefixes[SamplingChange] = SamplingChange()


@dataclass(frozen=True)
class Continue:
    """Go on with a document of text and pictures, or with a chat: what the model writes behind it, pictures and all."""

    run: Positional[Path]
    """The run's folder."""
    document: Positional[Path]
    """JSON: {"messages": [{"role": ..., "content": ...}]}, or {"parts": [{"type": "text", "text": ...}, {"type":
    "image", "image": PATH}]} without speakers."""
    images: int = 4
    """The most pictures that it may draw."""
    seed: int = 0
    out: Path | None = None
    """A folder for document.json and its pictures; DOCUMENT-continued by default."""
    sampling: OmitArgPrefixes[SamplingChange] = SamplingChange()


@dataclass(frozen=True)
class Chat:
    """Talk with a trained run in the terminal; name image files in what you say, and it writes image files."""

    run: Positional[Path]
    """The run's folder."""
    seed: int = 0
    out: Path | None = None
    """Where its pictures go; RUN/chat by default."""


@dataclass(frozen=True)
class Eval:
    """Score a trained run and write report.html and report.json into its folder."""

    run: Positional[Path]
    """The run's folder."""
    count: int = 200
    """Prompts, questions and scenes of each kind."""
    seed: int = 0


@dataclass(frozen=True)
class CheckpointList:
    """A run's checkpoints in a table: stage, step, when, size, ranks, ZeRO stage, whole or not."""

    run: Positional[Path]
    """The run's folder."""
    quick: FlagCreatePairsOff[bool] = False
    """Compare the files' sizes only, instead of reading every byte."""


@dataclass(frozen=True)
class CheckpointVerify:
    """Read every byte of a checkpoint, or of all in a run, against its checksums; exit code 2 names faulty files."""

    path: Positional[Path]
    """A checkpoint's folder, a stage's, or a run's."""


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


@dataclass(frozen=True)
class Checkpoint:
    """List, verify or export the checkpoints of a run."""

    do: OmitSubcommandPrefixes[OmitArgPrefixes[
        Annotated[CheckpointList, subcommand("list")] | Annotated[CheckpointVerify, subcommand("verify")]
        | Annotated[CheckpointExport, subcommand("export")]]]


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


Command = (  # in the order of `unimm --help`: a run from its recipe to its use
    Annotated[Show, subcommand("show")] | Annotated[Plan, subcommand("plan")] | Annotated[Train, subcommand("train")]
    | Annotated[Status, subcommand("status")] | Annotated[Checkpoint, subcommand("checkpoint")]
    | Annotated[Encode, subcommand("encode")] | Annotated[Sample, subcommand("sample")]
    | Annotated[Edit, subcommand("edit")] | Annotated[Ask, subcommand("ask")]
    | Annotated[Continue, subcommand("continue")] | Annotated[Chat, subcommand("chat")]
    | Annotated[Eval, subcommand("eval")] | Annotated[Convert, subcommand("convert")])
