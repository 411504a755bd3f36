"""What is asked of a model, and what it wrote."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from unimm.config.sampling import Sampling
from unimm.grammar import Automaton
from unimm.layout import Layout
from unimm.sample import Image, Part, Slot, Text


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
    """A request for one image."""
    return Request(tuple(parts), sampling, seed, size, 1, False)


def written(layout: Layout, automaton: Automaton, request: Request) -> tuple[Part, ...]:
    """The parts that a request wrote so far; images as codes, an unfinished one left out."""
    role = "assistant" if request.parts and request.parts[-1].role is not None else None
    beside, parts, said = layout.config.chat.beside_image if role else "", [], []
    image = list(layout.write_plans[request.size].header) if request.size else []
    state, values = automaton.after(image), iter(request.drawn)

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
