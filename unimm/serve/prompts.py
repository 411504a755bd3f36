"""What is to be drawn: prompts as arguments, in files, on standard input; each with what is said of it alone.

    a line of text                  a prompt
    a line {"prompt": ..., ...}     a prompt with fields of `Order`; others are let pass, as GenEval's
                                    evaluation_metadata.jsonl has them
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unimm.config.tokens import Layout
from unimm.errors import UserError
from unimm.pictures import nearest_size
from unimm.train import ranks


class OrderError(UserError):
    """A prompt, or what is said of it, that can't be used; the message names its place and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A prompt and how often, from which seed on and in what size it is drawn.

    size       (height, width) in pixels, or an aspect such as "16:9"; None: the layout's first
    negative   what to draw away from; None: what the run's settings say
    images     files of pictures that the prompt speaks of: an instruction to edit them
    where      the file and line that it came from
    line       that line
    """

    prompt: str = ""
    n: int = 4
    seed: int = 0
    size: tuple[int, int] | str | None = None
    negative: str | None = None
    tag: str = ""
    images: tuple[str, ...] = ()
    where: str = ""
    line: str = ""

    def __post_init__(self):
        if "\0" in self.prompt + (self.negative or ""):
            raise OrderError("a zero character is no text; leave it out")
        if not self.prompt.strip():
            raise OrderError('no prompt; say what to draw, such as: unimm sample RUN "a red circle"')
        if self.n < 1:
            raise OrderError(f"-n is {self.n}; ask for at least one picture")
        if not 0 <= self.seed <= 2**62:
            raise OrderError(f"seed is {self.seed}; it must lie between 0 and 2^62")


AS_ORDER = TypeAdapter(Order)


def read_orders(prompts: tuple[str, ...], file: Path | None, said: Mapping[str, Any]) -> list[Order]:
    """The orders of arguments, of a file, or of standard input, which is read where "-" stands or nothing is given.

    `said` holds the fields of an order that the command line gives; a line's own go before. Raises OrderError.
    """
    if prompts and file:
        raise OrderError("give prompts or --file, not both")
    if prompts not in ((), ("-",)):
        return [Order(prompt=prompt, line=json.dumps({"prompt": prompt}), **said) for prompt in prompts]
    if file and not file.is_file():
        raise OrderError(f"{file}: no such file")
    if file is None and (prompts or not os.isatty(0)):
        ranks.start()
        text, name = ranks.from_first(_text_of(0) if ranks.rank() == 0 else ""), "standard input"
    else:
        text, name = _text_of(file) if file else "", str(file)
    # Lines end at newlines alone: a form feed or U+2028 is part of a prompt.
    lines = [(f"{name}:{n}", line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_order(where, line, said) for where, line in lines] or [Order(**said)]  # the refusal of none


def _text_of(source: Path | int) -> str:
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="\n", closefd=source != 0) as file:
        return file.read()


def _order(where: str, line: str, said: Mapping[str, Any]) -> Order:
    try:
        given = json.loads(line) if line.startswith("{") else {"prompt": line}
        order = AS_ORDER.validate_python({**said, **given, "where": where, "line": json.dumps(given)})
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{name}: " for name in first["loc"][:1])
        raise OrderError(f"{where}: {place}{first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise OrderError(f"{where}: not JSON: {error}") from None
    for name in given.keys() - set(vars(order)):
        meant = difflib.get_close_matches(name, ("prompt", "seed", "size", "negative", "images"), 1, cutoff=0.65)
        if meant and meant[0] not in given:
            raise OrderError(f"{where}: no field {name!r}; did you mean {meant[0]!r}?")
    return replace(order, images=tuple(str(Path(where).parent / image) for image in order.images))


def codes_of(layout: Layout, size: tuple[int, int] | str | None, like: Sequence[np.ndarray] = ()) -> tuple[int, int]:
    """Rows and columns of codes of a size in pixels, or of the offered size nearest to an aspect (width:height), or to
    the last of the pictures (height, width, 3) that are edited; else the first.

    Raises OrderError naming what is offered where the size is none of it, or the aspect more than a quarter off.
    """
    side, offered = layout.pixels_per_code, layout.sizes
    if size is None:
        return nearest_size(*like[-1].shape[:2], offered) if like else offered[0]
    named = "this run's (height width) are: " + ", ".join(f"{h * side} {w * side}" for h, w in offered)
    if isinstance(size, str):
        wide, high = (int(n) if n.isdecimal() else 0 for n in size.partition(":")[::2])
        if not wide or not high:
            raise OrderError(f"aspect {size!r} is none; give width and height, such as 16:9")
        rows, columns = nearest_size(high, wide, offered)
        if not 0.8 <= columns * high / (rows * wide) <= 1.25:
            raise OrderError(f"no size near {size}; {named}")
        return rows, columns
    if size not in [(h * side, w * side) for h, w in offered]:
        raise OrderError(f"no size {size[0]} {size[1]}; {named}")
    return size[0] // side, size[1] // side
