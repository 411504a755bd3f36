"""What trains in a stage, and how: whole parts, new rows alone, low-rank adapters; at which part of the learning rate.

Parts are named by the words of the field or by dotted names:

    all            every parameter
    backbone       the language model without its two tables
    embeddings     the table that ids are read through
    head           the layer that ids are written through (the same table where the two are tied)
    new_rows       rows of tables, and whole tables, that the published model lacks; old rows stay as they are
    norms          every normalisation layer
    image_input, encoder, quantizer, decoder, layers.0.*, q_proj, lora_B, ...
                   whatever has this in its name: whole pieces between dots, with the wildcards of a shell
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from unimm.config.check import ConfigError, check, config


@config(positive="rank alpha", decay="dropout")
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W x + alpha / rank * B A x, with A and B learned, W not.

    They adapt linear layers inside blocks. Tables and heads learn by `Trains.parts`.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    targets: tuple[str, ...] = ("all-linear",)
    """The layers that are adapted, by dotted names such as q_proj; all-linear: every linear layer of the blocks."""

    def __post_init__(self):
        check(self, len(self.targets) > 0, "targets", "at least one name, such as 'all-linear'")


@config()
class Trains:
    """What trains in a stage: `parts` without `frozen`, and the adapters of `lora`."""

    parts: tuple[str, ...] = ("all",)
    frozen: tuple[str, ...] = ()
    """Parts that stay as they are. New rows of a frozen table still learn where `parts` names new_rows."""
    lora: Lora | None = None
    rates: dict[str, float] = field(default_factory=dict)
    """Part -> factor of the optimizer's learning rate. Where several name a parameter, the last one counts."""
    rows_learned: bool = False
    """An earlier stage has taught the new rows, so that this one may freeze them."""

    def __post_init__(self):
        check(self, self.lora is None or "all" not in self.parts, "parts",
              "what trains beside the adapters of lora, such as ('new_rows',) or ('new_rows', 'norms')")
        for part, rate in self.rates.items():
            check(self, rate > 0, "rates", f"factors greater than 0, to freeze {part!r} put it into frozen")


def matches(pattern: str, name: str) -> bool:
    """Whether whole pieces of a dotted name match: `mlp` and `layers.*.mlp` do in `model.layers.3.mlp.up.weight`."""
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def chosen(patterns: Iterable[str], names: Collection[str], words: Mapping[str, Collection[str]], where: str,
           kind: str = "parameter of this model") -> list[set[str]]:
    """For each pattern the names that it chooses; a word stands for its own names.

    Raises ConfigError, naming the field `where`, for a pattern that chooses nothing.
    """
    found = []
    for pattern in patterns:
        some = set(words[pattern]) if pattern in words else {n for n in names if matches(pattern, n)}
        if not some:
            full = [word for word, meant in words.items() if meant]
            pieces = {piece for name in names for piece in (name, *name.split(".")) if not piece.isdigit()}
            close = get_close_matches(pattern, full, n=1) or get_close_matches(pattern, sorted(pieces), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(full)}"
            raise ConfigError(f"{where} has {pattern!r}, which is no {kind}; {hint}")
        found.append(some)
    return found
