"""One stage of training as data: what is learned, from what mixture, for how long, by which optimizer; and when it
skips a step, goes back, cries for help, or stops."""

from dataclasses import fields, replace
from typing import Literal

from unimm.config.check import check, config, nearest
from unimm.config.data import Use
from unimm.config.trains import Trains


@config(positive="skips_in_row skips rollback_batches", zero_or_more="spike rollbacks late_seconds")
class Guards:
    """What is watched while a stage trains. Nothing here changes a run in which nothing goes wrong."""

    skips_in_row: int = 3
    """So many steps in a row whose loss or gradient is not finite stop the run; those before are skipped."""
    skips: int = 100
    """So many skipped steps in all stop it too."""
    spike: float = 10.0
    """A loss is a spike from so many robust deviations (1.4826 median absolute deviations) above the median; 0: off."""
    spike_window: int = 128
    """Steps that median and deviation are taken over. The first so many steps are not judged."""
    rollbacks: int = 0
    """How often a spike may send the run back to its newest checkpoint from before it; 0: spikes are only reported."""
    rollback_batches: int = 100
    """How many batches, up to the spike's own, are left out after going back; none from before the checkpoint.
    PaLM restarted about 100 steps before a spike and left out 200 to 500 batches (Chowdhery et al. 2022, 5.1)."""
    late_seconds: float = 300.0
    """A rank that has not moved for so long is reported with where it stands; 0: no watchdog.
    Below the 600 seconds after which NCCL ends a process that waits."""
    end_when_late: bool = False
    """End the process half as long again after that report, with exit code 76, for a launcher that restarts runs."""

    def __post_init__(self):
        check(self, self.spike_window >= 8, "spike_window", "8 or more")
        check(self, not self.rollbacks or self.spike, "rollbacks", "0 where spike is 0 (off)")
        check(self, not self.end_when_late or self.late_seconds, "end_when_late", "False where late_seconds is 0 (off)")


@config(kind="adamw", positive="lr clip")
class AdamW:
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Gradient norm above which gradients are scaled down."""


@config(kind="muon", positive="lr adamw_lr clip")
class Muon:
    """Muon (Jordan 2024) for matrices inside blocks, AdamW for everything else."""

    lr: float = 0.02
    momentum: float = 0.95
    adamw_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0


@config(fraction="warmup anneal final")
class Schedule:
    """Learning rate over a stage: rise over `warmup`, hold, fall to `final` over `anneal` (fractions of the steps).

    Warm-up, stable, decay is Schedule(warmup=0.02, anneal=0.2); half a cosine after the rise is
    Schedule(warmup=0.02, anneal=0.98, shape="cosine"); a constant rate is Schedule(warmup=0.0, anneal=0.0).
    """

    warmup: float = 0.02
    anneal: float = 0.4
    shape: Literal["linear", "cosine"] = "linear"
    final: float = 0.0

    def __post_init__(self):
        check(self, self.warmup + self.anneal <= 1, "anneal", f"at most 1 - warmup ({1 - self.warmup:g})")


@config(positive="steps log_every preview_every save_every keep", zero_or_more="keep_every micro", decay="ema")
class Stage:
    """One stage of training. Subclasses say what is learned; everything here is common to all."""

    mix: tuple[Use, ...]
    steps: int
    train: Trains = Trains()
    """What trains, and how: everything; some parts; new rows and low-rank adapters."""
    optimizer: AdamW | Muon = AdamW()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16"] = "fp32"
    zero: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed divides among the ranks: 1 the optimizer's state, 2 gradients too, 3 weights too."""
    offload: bool = False
    """Keep the optimizer's state and its fp32 weights in host memory, and update them there; from zero 1 on."""
    micro: int = 0
    """The most rows (or images) in one forward on one rank; a step is accumulated from as many as that takes.
    0: all at once."""
    ema: float = 0.0
    """Decay of a moving average of the trained weights, 0.999 say: previews, and what the stage leaves, are then the
    average; 0: none. It rises to this as (1 + updates) / (10 + updates), so that the first weights are soon forgotten.
    """
    seed: int = 0
    log_every: int = 20
    preview_every: int = 500
    save_every: int = 500
    keep: int = 2
    """How many of the stage's newest checkpoints are kept."""
    keep_every: int = 0
    """Checkpoints of steps divisible by this are kept too. 0: none of them."""
    guards: Guards = Guards()

    def __post_init__(self):
        check(self, len(self.mix) > 0, "mix", "at least one Use of a dataset")
        check(self, self.zero > 0 or not self.offload, "offload", "False at zero 0: set zero to 1, 2 or 3")


@config(positive="batch")
class PictureStage(Stage):
    """One stage on pictures, with their captions, in place of documents."""

    batch: int = 64
    """Images per optimizer step, over all ranks."""


@config(objective="reconstruct")
class Reconstruct(PictureStage):
    """Train the image tokenizer to give back the pixels it is given, and to what its `losses` ask for.

    What a quantizer learns from a batch as a whole (VQ's averages, LFQ's entropy) it takes from one forward: with
    `micro`, from that many images.
    """


@config(objective="contrast")
class Contrast(PictureStage):
    """Train the recipe's `features` so that pictures and their captions find each other in a batch, by a sigmoid loss
    (SigLIP, arXiv:2303.15343)."""


@config(objective="detokenize")
class Detokenize(PictureStage):
    """Train the recipe's diffusion decoder to draw the pictures whose codes it is given, by rectified flow."""


@config(objective="next_token", positive="step_tokens seq_len image_weight", zero_or_more="z_loss reconstruction",
        fraction="drop_context")
class NextToken(Stage):
    """Train the language model to write the next token of packed documents, text and image alike."""

    step_tokens: int = 2048
    """Tokens per optimizer step, over all ranks, padding included: a multiple of seq_len. Ranks, accumulation and rows
    follow from it and `micro`."""
    seq_len: int = 128
    """Tokens per row."""
    recompute: bool = False
    """Keep only what enters each layer and compute the rest again in backward: a third more work, far less memory."""
    compile: bool = False
    """Run each layer through torch.compile; up to zero 2."""
    drop_context: float = 0.1
    """Share of text-to-image documents whose context takes the layout's unconditional form."""
    image_weight: float = 1.0
    """Weight of an image position in the loss, text positions having 1."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, at learned positions: keeps logits from drifting."""
    reconstruction: float = 0.0
    """Weight of the image tokenizer's own loss beside the language model's; above 0 pictures are read as pixels and the
    tokenizer learns from both (ETT, arXiv:2505.10562, eq. 3). What it becomes encodes the data of later stages."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with a sample longer than seq_len: stop with its length, or leave it out and count it."""

    def __post_init__(self):
        drawn = [use.data for use in self.mix if use.task in ("t2i", "draw")]
        check(self, not (self.reconstruction and drawn), "reconstruction", f"0 where images are drawn ({drawn}): their "
              "codes would be those of the tokenizer before it learned")
        check(self, self.step_tokens % self.seq_len == 0, "step_tokens",
              f"a multiple of seq_len ({self.seq_len:,}): {nearest(self.step_tokens, self.seq_len)}")
        # At zero 3 layers are whole only while they run.
        check(self, not (self.compile and self.zero == 3), "compile", "False at zero 3: set zero to 2 or less")

    @property
    def rows(self) -> int:
        """Packed rows per optimizer step, over all ranks."""
        return self.step_tokens // self.seq_len


FREE = ("zero", "offload", "micro", "recompute", "compile", "log_every", "preview_every", "save_every", "keep",
        "keep_every", "guards")


AnyStage = Reconstruct | Contrast | Detokenize | NextToken


def learned(stage: AnyStage) -> AnyStage:
    """The stage with its defaults in all fields that say how it is run and watched, not what it learns: a run may be
    continued with others. An image tokenizer's `micro` stays, since its quantizer learns from one forward at a time."""
    free = {f.name: f.default for f in fields(stage) if f.name in FREE}
    if not isinstance(stage, NextToken):
        free.pop("micro")
    return replace(stage, **free)
