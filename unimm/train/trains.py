"""From a stage's `train` to a module in which just that trains, before the engine is built.

    Trains --apply--> requires_grad, adapters, gradients of old rows at zero --Trained--> optimizer, table
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import nn

from unimm.config.trains import Trains, chosen
from unimm.errors import UserError
from unimm.model.lora import adapt, is_adapter, plain_name


class TrainError(UserError):
    """A stage that can't be trained as asked, or that went wrong; the message names the remedy."""


class Trained(NamedTuple):
    """What the optimizer and the table need to know, by the module's own parameter names.

    rates      factor of the learning rate, of those that have one
    rows       the rows that train in tables of which nothing else does: these tables must not decay
    new_rows   the new rows of every table
    """

    rates: Mapping[str, float] = {}
    rows: Mapping[str, range] = {}
    new_rows: Mapping[str, range] = {}


EVERYTHING = Trained()


def apply(module: nn.Module, train: Trains, new_rows: Mapping[str, range], parts: Mapping[str, Collection[str]],
          where: str = "train") -> Trained:
    """Let train in `module` what `train` says, and nothing that the module itself has frozen.

    new_rows  parameter name -> its new rows, which must learn
    parts     word of a recipe -> names of parameters
    where     the field that holds `train`, for messages

    Raises ConfigError for a part that the module lacks, TrainError where nothing trains or new rows can't learn.
    """
    first = first_names(module)
    new_rows = {first[name]: rows for name, rows in new_rows.items()}
    free = {name for name, p in module.named_parameters() if p.requires_grad}
    norms = [n for n in first if "norm" in type(module.get_submodule(n.rpartition(".")[0])).__name__.lower()]
    words = {"all": list(first), **parts, "new_rows": list(new_rows), "norms": norms}
    picked = zip(train.parts, chosen(train.parts, first, words, f"{where}.parts"))
    frozen = {first[name] for some in chosen(train.frozen, first, words, f"{where}.frozen") for name in some}
    whole = free & {first[name] for part, some in picked if part != "new_rows" for name in some} - frozen
    rows = {name: r for name, r in new_rows.items() if name in free - whole} if "new_rows" in train.parts else {}
    if train.lora:
        adapt(module, train.lora, f"{where}.lora")
    for name, p in module.named_parameters():
        p.requires_grad_(is_adapter(name) or plain_name(name) in whole | rows.keys())
    _check(module, train, new_rows, where)
    rows = {name: r for name, r in rows.items() if len(r) < len(module.get_parameter(name))}
    for name, some in rows.items():
        _keep_old(module.get_parameter(name), some)
    mixed = [n for n in whole & new_rows.keys() if len(new_rows[n]) < len(module.get_parameter(n))]
    if mixed and "new_rows" in train.rates:
        raise TrainError(f"{where}.rates has a factor for 'new_rows', but {mixed[0]} trains with its old rows, at one "
                         "rate; give the factor to the table: 'embeddings' or 'head'")
    now = [name for name, p in module.named_parameters() if p.requires_grad]
    names, rates = {*first, *first_names(module)}, {}
    for (part, rate), some in zip(train.rates.items(), chosen(train.rates, names, words, f"{where}.rates")):
        some |= {first.get(name, name) for name in some}
        # An adapter belongs to every part that the weight which it adapts belongs to.
        moved = [name for name in now if name in some or plain_name(name) in some]
        if not moved:
            raise TrainError(f"{where}.rates has a factor for {part!r}, but nothing of it trains in this stage")
        rates |= dict.fromkeys(moved, rate)
    return Trained(rates, rows, new_rows)


def first_names(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> its first one; a table that is tied to another has two."""
    first: dict[nn.Parameter, str] = {}
    return {name: first.setdefault(p, name) for name, p in module.named_parameters(remove_duplicate=False)}


def _check(module: nn.Module, train: Trains, new_rows: Mapping[str, range], where: str) -> None:
    """Defect 1 of this field: adapters everywhere, and the new rows as random at the end as at the start."""
    for name, rows in new_rows.items():
        if rows and not train.rows_learned and not module.get_parameter(name).requires_grad:
            why = "LoRA adapts none of its rows" if train.lora else "it is frozen in this stage"
            raise TrainError(f"{len(rows):,} new rows of {name} could never learn: {why}; add 'new_rows' to "
                             f"{where}.parts, or set {where}.rows_learned where an earlier stage has taught them")
    if not any(p.requires_grad for p in module.parameters()):
        raise TrainError(f"nothing trains in this stage: all is frozen; change {where}.parts or {where}.frozen")


def _keep_old(table: nn.Parameter, rows: range) -> None:
    """Let only `rows` of a table have a gradient. With zero moments and no decay AdamW leaves the others bit for bit.

    A hook on the gradient as it arrives: before anything accumulates, averages or shards it.
    """
    around = [0, 0] * (table.ndim - 1) + [rows.start, len(table) - rows.stop]  # from the last dimension to the first
    table.register_hook(lambda gradient: nn.functional.pad(gradient[rows.start:rows.stop], around))
