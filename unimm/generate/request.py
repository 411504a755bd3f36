"""What is asked of a model, what guides its images, and what it wrote.

An image is guided by further forms of its context, whose logits are weighed:

    none         the row alone
    two-way      u + s (f - u)                        Ho & Salimans 2022, arXiv:2207.12598
    three-way    u + s_i (i - u) + s_t (f - i)        InstructPix2Pix, arXiv:2211.09800; Chameleon's release

    f  the full context   i  its images alone   u  nothing of it, in the layout's own form, or negative words instead
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice

import numpy as np

from unimm.config.model import PretrainedBackbone
from unimm.config.recipe import Recipe
from unimm.config.sampling import Sampling
from unimm.layout import Layout
from unimm.sample import Image, Part, Sequence, Slot, Text


@dataclass(eq=False)
class Request:
    """One row: what it goes on from, how its ids are chosen, and where it may go.

    parts    the context
    size     rows and columns of codes of the image that comes next; None: what comes next is the model's choice
    images   the most images that it writes, that of `size` among them; 0: none may begin
    text     whether text goes on behind the last image; else the request ends with it
    ids      what was written: behind the header of the image where there is a `size`, and without the ids that end an
             image where the layout's images end by count
    drawn    what stands at those ids that do not say it themselves: several codes, or a latent
    steps    how many times the model was asked

    Ends with the text's end, or with `sampling.text_length` ids of text.
    """

    parts: tuple[Part, ...]
    sampling: Sampling
    seed: int = 0
    size: tuple[int, int] | None = None
    images: int = 0
    text: bool = True
    ids: list[int] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)
    steps: int = 0


def drawing(parts: tuple[Part, ...], sampling: Sampling, size: tuple[int, int], seed: int = 0) -> Request:
    """A request for one image, its prompt with the words that the release adds to it."""
    if sampling.positive and parts and isinstance(parts[-1], Text):
        parts = (*parts[:-1], replace(parts[-1], text=parts[-1].text + sampling.positive))
    return Request(tuple(parts), sampling, seed, size, 1, False)


@dataclass(frozen=True)
class Guides:
    """The other branches of a row that writes an image: its logits are the weighted sum of all branches' logits.

    prompts   what each of them reads, up to the image's first code
    weights   the row's own weight, then one of each prompt; they add up to 1
    """

    prompts: tuple[Sequence, ...]
    weights: tuple[float, ...]


def guides(layout: Layout, sampling: Sampling, parts: tuple[Part, ...], size: tuple[int, int]) -> Guides | None:
    """What guides an image of `size` (rows, columns) after `parts`; None where nothing does.

    Branches of no weight are left out. Raises LayoutError where the layout can't write a form that is asked for.
    """
    text, image = sampling.guidance, sampling.image_guidance
    forms = {None: 1 - text}
    if image and any(isinstance(part, Image) for part in parts):
        forms = {True: image - text, False: 1 - image}
    used = {keep: weight for keep, weight in forms.items() if weight}
    if not parts or not used:
        return None
    prompts = tuple(_forgotten(layout, sampling.negative, parts, size, keep) for keep in used)
    return Guides(prompts, (text, *used.values()))


def _forgotten(layout: Layout, negative: str, parts: tuple[Part, ...], size, keep: bool | None) -> Sequence:
    """The context without its words, or with others in their place; `keep` as `images` of `Layout.prompt`."""
    if not negative:
        return layout.prompt(parts, "image", size, unconditional=True, images=keep)
    role = parts[-1].role and "user"
    kept = layout.config.forgets_words_only if keep is None else keep
    shown = tuple(replace(part, role=role) for part in parts if isinstance(part, Image) and kept)
    return layout.prompt((*shown, Text(negative, role=role)), "image", size)


def warn(recipe: Recipe, sampling: Sampling, images: bool = False) -> None:
    """Say on stderr what is `untrained`, each line once in a process."""
    for line in untrained(recipe, sampling, images):
        _print_once(f"unimm: warning: {line}", file=sys.stderr)


_print_once = cache(print)


def untrained(recipe: Recipe, sampling: Sampling, images: bool = False) -> list[str]:
    """What the settings ask for that no stage trained, in a line each; `images`: of a context that holds some.

    What a published model's own settings ask for is known to work, whatever the recipe's stages do.
    """
    stages, release = recipe.language, recipe.sampling if isinstance(recipe.backbone, PretrainedBackbone) else None
    three = images and sampling.image_guidance not in (0, sampling.guidance)
    found = {}
    if sampling.guidance == 1 and not three:
        return []
    forgets = any(stage.drop_context and any(use.task != "caption" for use in stage.mix) for stage in stages.values())
    if not forgets and (release is None or release.guidance == 1):
        option = f"--stages.{next(reversed(stages), 'sft')}.drop_context 0.1"
        found[f"guidance {sampling.guidance:g}"] = f"the unconditional form; train with {option}, or ask for guidance 1"
    if three and not recipe.layout.forgets_words_only and not (release and release.image_guidance):
        found[f"image_guidance {sampling.image_guidance:g}"] = "a context of images alone; 0 guides by all of it"
    if sampling.negative and not recipe.sampling.negative:
        found["a negative prompt"] = "with one; its unconditional form is what guidance is made for"
    return [f"{asked} is asked for, but no stage of {recipe.name} trained {lacks}" for asked, lacks in found.items()]


def written(layout: Layout, request: Request) -> tuple[Part, ...]:
    """The parts that a request wrote so far; images as codes, an unfinished one left out."""
    role = "assistant" if request.parts and request.parts[-1].role is not None else None
    beside, parts, said = layout.config.chat.beside_image if role else "", [], []
    image = list(layout.write_plans[request.size].header) if request.size else []
    automaton, values = layout.automaton, iter(request.drawn)
    state = automaton.after(image)

    def speak() -> None:
        text = layout.said(said, role is not None)
        text = text.removeprefix(beside) if parts and isinstance(parts[-1], Image) else text
        text = text.removesuffix(beside) if image else text
        if text:
            parts.append(Text(text, role=role))
        said.clear()

    for i in request.ids:
        before, state = state, int(automaton.table[state, automaton.label_of[i]])
        if before == automaton.TEXT and state in (automaton.TEXT, automaton.DONE):
            said.append(i)
            continue
        image.append(i)
        speak()
        if state == automaton.TEXT:
            ids = np.array(image)
            content = layout.parse(ids, slots=_slots(layout, ids, values)).images[0].content
            parts.append(Image(content, learn=True, role=role))  # as it is written, not as it is read
            image.clear()
    speak()
    return tuple(parts)


def _slots(layout: Layout, ids: np.ndarray, values: Iterator[np.ndarray]) -> tuple[Slot, ...]:
    """What an image's ids do not say themselves, as slots; takes their values."""
    spaces = {r.start: name for name, r in layout.spaces.items() if r.size < r.codes or name in layout.vectors}
    stands = np.isin(ids, list(spaces))
    runs = np.flatnonzero(np.diff(stands, prepend=False, append=False)).reshape(-1, 2).tolist()
    found = [(first, np.stack(list(islice(values, end - first)))) for first, end in runs]
    return tuple(Slot(first, len(held), spaces[int(ids[first])], False,
                      held.astype(np.int32) if held.dtype == np.int64 else held) for first, held in found)
