"""One stage of training as data: what is learned, from what mixture, for how long, by which optimizer."""

from dataclasses import dataclass
from typing import Literal

from unimm.config.check import check, fraction, positive
from unimm.config.data import Use
from unimm.config.guards import Guards


@dataclass(frozen=True, kw_only=True)
class AdamW:
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    kind: Literal["adamw"] = "adamw"

    def __post_init__(self):
        positive(self, "lr", "clip")


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon (Jordan 2024) for matrices inside blocks, AdamW for everything else."""

    lr: float = 0.02
    momentum: float = 0.95
    adamw_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    kind: Literal["muon"] = "muon"

    def __post_init__(self):
        positive(self, "lr", "adamw_lr", "clip")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over a stage: rise over `warmup`, hold, fall to `final` over `anneal` (fractions of the steps)."""

    warmup: float = 0.02
    anneal: float = 0.4
    shape: Literal["linear", "cosine"] = "linear"
    final: float = 0.0

    def __post_init__(self):
        fraction(self, "warmup", "anneal", "final")
        check(self, self.warmup + self.anneal <= 1, "anneal", f"at most 1 - warmup ({1 - self.warmup:g})")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training. Subclasses say what is learned; everything here is common to all."""

    mix: tuple[Use, ...]
    steps: int
    optimizer: AdamW | Muon = AdamW()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16"] = "fp32"
    zero: Literal[0, 1, 2, 3] = 0
    seed: int = 0
    log_every: int = 20
    preview_every: int = 500
    save_every: int = 500
    keep: int = 2
    """How many checkpoints of the stage are kept."""
    guards: Guards = Guards()

    def __post_init__(self):
        positive(self, "steps", "log_every", "preview_every", "save_every", "keep")
        check(self, len(self.mix) > 0, "mix", "at least one Use of a dataset")


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Stage):
    """Train the image tokenizer to give back the pixels it is given."""

    batch: int = 64
    """Images per optimizer step, over all ranks."""
    objective: Literal["reconstruct"] = "reconstruct"

    def __post_init__(self):
        super().__post_init__()
        positive(self, "batch")


@dataclass(frozen=True, kw_only=True)
class NextToken(Stage):
    """Train the language model to write the next token of packed documents, text and image alike."""

    rows: int = 16
    """Packed rows per optimizer step, over all ranks."""
    seq_len: int = 128
    """Tokens per row."""
    drop_context: float = 0.1
    """Share of text-to-image documents whose context takes the layout's unconditional form."""
    image_weight: float = 1.0
    """Weight of an image position in the loss, text positions having 1."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with a sample longer than seq_len: stop with its length, or leave it out and count it."""
    objective: Literal["next_token"] = "next_token"

    def __post_init__(self):
        super().__post_init__()
        positive(self, "rows", "seq_len", "image_weight")
        fraction(self, "drop_context")
