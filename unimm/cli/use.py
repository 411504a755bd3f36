"""Commands that use a trained run: draw, edit, answer, go on, talk, be scored; each as in `unimm.cli.commands`."""

import os
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from unimm.config.check import ConfigError
from unimm.config.sampling import Sampling

_Changes = make_dataclass(
    "_Changes", [(name, kind | None, None) for name, kind in Sampling.settings().items()], frozen=True)


@dataclass(frozen=True)
class SamplingChange(_Changes):
    """Differences from the sampling settings that the run was saved with.

    How far an image follows the prompt: guidance (1: not pushed), image-guidance (towards the context's images alone,
    0: off), negative (words to draw away from), positive (words added to the prompt). How an id of an image is chosen:
    temperature (0: the likeliest), top-k and top-p (0 and 1: all), min-p (least share of the likeliest's probability),
    adaptive-k (top-k by entropy); the same with text- before it for text, of at most text-length ids. window: ids read
    in one step; above 1, images take fewer steps and are the same.
    """

    def said(self) -> dict[str, float | str]:
        return {name: value for name, value in vars(self).items() if value is not None}


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
    sampling: OmitArgPrefixes[SamplingChange] = SamplingChange()

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
           drawing: OmitArgPrefixes[Drawing] = Drawing()) -> None:
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
    from unimm.serve.files import draw_to_files
    from unimm.serve.prompts import read_orders

    out = out or run / ("geneval" if layout == "geneval" else "samples")
    draw_to_files(run, read_orders(prompts, file, drawing.said()), out, drawing.sampling.said(), drawing.batch, layout)


def edit(run: Positional[Path], words: Positional[tuple[str, ...]], out: Path | None = None,
         drawing: OmitArgPrefixes[Drawing] = Drawing()) -> None:
    """Change a picture as told; where it is written, and what is known of it there, is as with `sample`.

    Args:
        run: The run's folder.
        words: The picture's file, or several, and then the instruction in quotes.
        out: Where to write; RUN/edits by default.
    """
    from unimm.serve.files import draw_to_files
    from unimm.serve.prompts import Order

    images, instruction = _apart(words, "instruction")
    orders = [Order(prompt=instruction, images=images, **drawing.said())]
    draw_to_files(run, orders, out or run / "edits", drawing.sampling.said(), drawing.batch)


def ask(run: Positional[Path], words: Positional[tuple[str, ...]], seed: int = 0,
        sampling: OmitArgPrefixes[SamplingChange] = SamplingChange()) -> None:
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
    recipe_of(run).sampling.changed(**sampling.said())  # refused now, not once weights are read
    print(Model.load(run).ask(shown, question, seed, **sampling.said()))


def go_on(run: Positional[Path], document: Positional[Path], images: int = 4, seed: int = 0, out: Path | None = None,
          sampling: OmitArgPrefixes[SamplingChange] = SamplingChange()) -> None:
    """Go on with a document of text and pictures, or with a chat: what the model writes behind it, pictures and all.

    Args:
        run: The run's folder.
        document: JSON: {"messages": [{"role": ..., "content": ...}]}, or {"parts": [{"type": "text", "text": ...},
            {"type": "image", "image": PATH}]} without speakers.
        images: The most pictures that it may draw.
        out: A folder for document.json and its pictures; DOCUMENT-continued by default.
    """
    from unimm.serve.documents import continue_file

    out = out or document.with_name(f"{document.stem}-continued")
    print(continue_file(run, document, out, images, seed, sampling.said()))


def chat(run: Positional[Path], seed: int = 0, out: Path | None = None) -> None:
    """Talk with a trained run in the terminal; name image files in what you say, and it writes image files.

    Args:
        run: The run's folder.
        out: Where its pictures go; RUN/chat by default.
    """
    from unimm.serve.terminal import chat_in_terminal

    chat_in_terminal(run, seed, out)


def evaluate(run: Positional[Path], count: int = 200, seed: int = 0, features: Path | None = None) -> None:
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
