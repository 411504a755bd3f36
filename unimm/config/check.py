"""What every class of the configuration is made by, and its refusals on construction: field, value, remedy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, dataclass_transform

from unimm.errors import UserError


class ConfigError(UserError):
    """A recipe asks for something impossible; the message names the field, the value and the remedy."""


def check(owner, holds: bool, name: str, want: str) -> None:
    if not holds:
        raise ConfigError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}; it must be {want}")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(*, positive: str = "", zero_or_more: str = "", fraction: str = "", share: str = "", decay: str = "",
           whole: str = "", **tag: str) -> Callable[[type], type]:
    """Makes a class one of frozen values, given by their names.

    positive, ...  names of fields, with spaces between, that are refused beyond that; before what else the class checks
    whole          "width/heads": pairs of fields, the first of which is to be a multiple of the second
    tag            kind="vq": a last field, by which JSON, the command line and `match` tell it from others in its place
    """
    def made(cls: type) -> type:
        cls.__annotations__ |= {name: Literal[value] for name, value in tag.items()}
        further = vars(cls).get("__post_init__", lambda self: None)

        def __post_init__(self):
            getattr(super(cls, self), "__post_init__", lambda: None)()
            for name in positive.split():
                check(self, getattr(self, name) > 0, name, "greater than 0")
            for name in zero_or_more.split():
                check(self, getattr(self, name) >= 0, name, "0 or more")
            for name in fraction.split():
                check(self, 0 <= getattr(self, name) <= 1, name, "between 0 and 1")
            for name in share.split():
                check(self, 0 < getattr(self, name) <= 1, name, "above 0 and at most 1")
            for name in decay.split():
                check(self, 0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
            for over, under in (pair.split("/") for pair in whole.split()):
                by = getattr(self, under)
                check(self, getattr(self, over) % by == 0, over, f"a multiple of {under} ({by})")
            further(self)

        for name, value in {**tag, "__post_init__": __post_init__}.items():
            setattr(cls, name, value)
        return dataclass(frozen=True, kw_only=True)(cls)

    return made


def nearest(number: int, unit: int) -> str:
    """The multiples of `unit` next to `number`, in words: "2,048 or 2,304"."""
    below = number // unit * unit
    return f"{below:,} or {below + unit:,}" if below else f"{unit:,}"
