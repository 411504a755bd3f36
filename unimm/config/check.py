"""Refusals on construction, all worded alike: field, value, remedy."""

from unimm.errors import UserError


class ConfigError(UserError):
    """A recipe asks for something impossible; the message names the field, the value and the remedy."""


def check(owner, holds: bool, name: str, want: str) -> None:
    if not holds:
        raise ConfigError(f"{type(owner).__name__}.{name} is {getattr(owner, name)!r}; it must be {want}")


def positive(owner, *names: str) -> None:
    for name in names:
        check(owner, getattr(owner, name) > 0, name, "greater than 0")


def zero_or_more(owner, *names: str) -> None:
    for name in names:
        check(owner, getattr(owner, name) >= 0, name, "0 or more")


def fraction(owner, *names: str) -> None:
    for name in names:
        check(owner, 0 <= getattr(owner, name) <= 1, name, "between 0 and 1")


def nearest(number: int, unit: int) -> str:
    """The multiples of `unit` next to `number`, in words: "2,048 or 2,304"."""
    below = number // unit * unit
    return f"{below:,} or {below + unit:,}" if below else f"{unit:,}"
