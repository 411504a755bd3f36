"""Bytes that one rank holds while it trains, by part: plain arithmetic over a model's counts.

    weights      as they are multiplied with: fp32, or bf16 from zero 1 on (at zero 0 bf16 is autocast of fp32)
    gradients    between backward and update, in the weights' type
    optimizer    AdamW's two fp32 moments (Muon: one, of matrices); from zero 1 on also fp32 copies of what trains
    average      the moving average of the trained weights, fp32
    activations  what autograd keeps of one micro-batch
    logits       of one chunk of the loss with their gradient, and the gradient of the head that is made with them
    buffers      what DeepSpeed gathers and reduces in
    tokenizer    the image tokenizer beside a language model, for previews
    reserve      the driver's context, NCCL, and what the allocator can't use

The first three are counted by `unimm.train.table`. Buffers are those of DeepSpeed 0.19, measured
(tests/plan/test_memory.py).

What a stage's model is made of and keeps for backward, from one forward pass on tensors without storage.

torch's FakeTensorMode gives every tensor a shape and a type and no memory, so a model of any size is built from its
configuration alone, and autograd says by itself what it would save: no formula of our own to go wrong.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from unimm.config.check import ConfigError
from unimm.config.model import FreshBackbone, PretrainedBackbone, SharedTable
from unimm.config.recipe import Recipe
from unimm.config.stages import Contrast, Detokenize, Muon, NextToken, PictureStage, Stage
from unimm.diffusion.detokenizer import FlowDetokenizer
from unimm.hardware import Multiplied
from unimm.images.quantize import Quantizer
from unimm.images.tokenizer import build_tokenizer
from unimm.layout import Layout
from unimm.model.backbone import build_backbone, has_experts, multiplied, recompute_layers
from unimm.model.cross_entropy import chunk_of
from unimm.model.unified import UnifiedModel
from unimm.published import vision
from unimm.system import new_model, new_rows
from unimm.train.engine import deepspeed_config
from unimm.train.optimizer import block_matrices
from unimm.train.shares import Shares, shares
from unimm.train.table import PERSIST, footprint
from unimm.train.trains import Trained, apply

LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: how many gathered elements a rank may hold at zero 3."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: how many elements an update at zero 3 takes at once."""
RESERVE, UNUSABLE = 1.5 * 2**30, 0.04
"""Ours, for a GPU: bytes of the context and NCCL, and the share of memory lost to fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model is made of, in elements; bytes of activations are those of one row (or image)."""

    parameters: int
    trained: int
    matrices: int = 0
    """Of the trained ones, those that Muon moves."""
    small: int = 0
    """Elements in parameters below PERSIST."""
    once: int = 0
    """Activations that more rows don't add to: the weights' copies in bf16 under autocast, positions."""
    row: int
    row_recomputed: int
    """Activations of a row where each layer keeps its input only, with one whole layer that is computed again."""
    tokenizer: int = 0
    """Bytes of the image tokenizer."""
    head: "Head | None" = None

    @property
    def moments(self) -> int:
        """fp32 values that the optimizer keeps."""
        return 2 * self.trained - self.matrices

    def activations(self, rows: int, recompute: bool) -> int:
        """Bytes that autograd keeps of so many rows."""
        return self.once + rows * (self.row_recomputed if recompute else self.row)


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the loss in one pass over a head holds (`unimm.model.cross_entropy`)."""

    ids: int
    width: int
    trained: bool
    capped: bool
    chunk: int
    """The most positions whose logits exist at one time."""

    def bytes(self, tokens: int, half: bool, cast: bool) -> int:
        """At the moment when it holds most: as the logits turn into their gradient, or that meets the hidden states.

        tokens  positions, all taken to be learned
        half    products are in bf16, `cast` from fp32 weights
        """
        weight, logits = self.ids * self.width, min(self.chunk, tokens) * self.ids
        hidden = (2 if half else 4) * tokens * self.width
        turning = (6 if half else 4) + (0 if not self.capped else 2 if half else 4)
        # In bf16 the head's gradient of a chunk is made beside the sum of all of them, which is fp32.
        meeting = 2 * logits + 2 * weight * self.trained if half else 4 * logits
        kept = 4 * weight * self.trained + hidden + (2 * weight + hidden) * cast
        return max(turning * logits, meeting) + kept


def memory(counts: Counts, stage: Stage, cut: Shares, gpu: bool = True) -> tuple[dict[str, int], int]:
    """Bytes of a rank's device by part, at the moment of a step when it holds most; and bytes of its host memory."""
    half = stage.precision == "bf16"
    held = footprint(counts.parameters, counts.trained, counts.small, counts.moments, stage, cut)
    share = counts.trained / cut.ranks
    average = 4 * (share if stage.zero else counts.trained) if stage.ema else 0
    logits = counts.head.bytes(cut.rows * cut.tokens, half, half and stage.zero == 0) if counts.head else 0
    kept, passing = buffers(counts, stage, cut)
    activations = counts.activations(cut.rows, recomputes(stage))
    # The update makes fp32 gradients when activations are gone: it counts where it takes more than they do.
    moved = min(share, SUB_GROUP) if stage.zero == 3 else share
    update = 4 * moved if stage.zero and not stage.offload else 0
    passing += max(0, update - activations - logits - passing)
    parts = {**held._asdict(), "average": average, "activations": activations, "logits": logits,
             "buffers": kept + passing, "tokenizer": counts.tokenizer}
    host = 0.0
    if stage.offload:  # gradients wait in fp32 beside the masters, and a copy of these in the weights' type
        host = held.optimizer + held.gradients + average + (2 if half else 4) * share
        parts |= {"gradients": 0, "optimizer": 0, "average": 0}
    parts["reserve"] = RESERVE + UNUSABLE * sum(parts.values()) if gpu else 0
    return {name: round(number) for name, number in parts.items()}, round(host)


def recomputes(stage: Stage) -> bool:
    return isinstance(stage, NextToken) and stage.recompute


def buffers(counts: Counts, stage: Stage, cut: Shares) -> tuple[float, float]:
    """DeepSpeed's own bytes on a device: those it keeps, and those that pass during forward and backward."""
    each = 2 if stage.precision == "bf16" and stage.zero else 4
    bucket = deepspeed_config(stage, cut.ranks, counts.parameters)["zero_optimization"]["reduce_bucket_size"]
    if stage.zero == 3:
        gathered = min(LIVE, counts.parameters - counts.small) if cut.ranks > 1 else 0
        return each * bucket, each * gathered
    return 0, each * min(bucket, counts.trained) if stage.zero or cut.ranks > 1 else 0


def remedy(counts: Counts, stage: Stage, world: int, limit: int, gpu: bool = True) -> Stage | None:
    """The stage with the mildest change of fields that fits into `limit` bytes, or None where none does.

    Mildest first: fewer rows at once costs little, recomputing a third of the work, ZeRO traffic, offload most.
    """
    rows = shares(stage, world).rows
    fewer = [n for n in range(rows - 1, 0, -1) if rows % n == 0]
    for offload, zero, again, micro in product(sorted({stage.offload, True}), range(stage.zero, 4),
                                               sorted({recomputes(stage), True}), [stage.micro, *fewer]):
        recompute = {"recompute": again} if isinstance(stage, NextToken) else {}
        try:
            changed = replace(stage, offload=offload, zero=zero, micro=micro, **recompute)
        except ConfigError:  # fields that exclude one another
            continue
        if sum(memory(counts, changed, shares(changed, world), gpu)[0].values()) <= limit:
            return changed
    return None


ATTENTION = "unimm_plan"


@dataclass(frozen=True)
class Measured:
    """A stage's model, on tensors without storage: what the memory depends on, and what one token (or image) costs."""

    module: nn.Module
    trained: Trained
    counts: Counts
    multiplied: Multiplied


class _Fused(torch.autograd.Function):
    """Attention as fused kernels do it: for backward they keep queries, keys, values, output and one sum a row."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out


class Saved(saved_tensors_hooks):
    """Bytes that autograd saves inside `with`, storage by storage, but for those of `module`'s own parameters."""

    def __init__(self, module: nn.Module):
        super().__init__(self._pack, lambda tensor: tensor)
        self.own = {p.untyped_storage()._cdata for p in module.parameters()}
        self.kept: dict[int, torch.UntypedStorage] = {}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.kept[storage._cdata] = storage  # held, so that no later storage takes its address
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.kept.values())


def measure(recipe: Recipe, layout: Layout | None, stage: NextToken | PictureStage, name: str,
            device: Literal["cpu", "cuda"] = "cuda") -> Measured:
    """The stage's model, measured. `name` is the stage's, for messages; `device` decides how many logits exist at once;
    an image tokenizer has no layout.

    Raises ConfigError where the backbone can't be described without a download, or `train` names what it lacks;
    TrainError where new rows could not learn.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        if isinstance(stage, PictureStage):
            return _pictures(recipe, stage, name)
        return _language(recipe, layout, stage, name, device)


def _language(recipe: Recipe, layout: Layout, stage: NextToken, name: str, device: str) -> Measured:
    config = recipe.backbone
    if isinstance(config, PretrainedBackbone) and not (Path(config.path) / "config.json").is_file():
        raise ConfigError(f"a plan downloads nothing, and there is no {config.path}/config.json; put the model's "
                          "config.json into a folder and name that folder as backbone.path")
    backbone = build_backbone(config, layout.vocab, SharedTable(), {}, weights=False)
    if has_experts(backbone):
        raise ConfigError(f"{config.path} ({backbone.config.model_type}) is a mixture of experts, whose activations "
                          "depend on where tokens are sent; a plan counts dense models only: plan one of the same "
                          "width and layers")
    if backbone.config.tie_word_embeddings:  # which transformers does not do for tensors without storage
        backbone.get_output_embeddings().weight = backbone.get_input_embeddings().weight
    model = new_model(recipe, layout, _tokenizer(recipe), weights=False, backbone=backbone)
    new = new_rows(recipe, layout, model)
    # peft moves its adapters to where they are already; torch can't replace tensors without storage by themselves.
    with mock.patch.object(nn.Module, "_apply", lambda module, change, recurse=True: module):
        trained = apply(model, stage.train, new, model.parts(), f"stages.{name}.train")
    sizes = _settled(model, stage)
    once, plain = _row(model, stage)
    recompute_layers(backbone, reentrant=False)
    _, inputs = _row(model, stage)
    found = multiplied(backbone)
    layer = (plain - inputs) // found.layers
    out = backbone.get_output_embeddings()
    head = Head(ids=out.out_features, width=out.in_features, trained=out.weight.requires_grad,
                capped=model.cap is not None, chunk=chunk_of(out.out_features, device))
    counts = Counts(**sizes, once=once, row=plain, row_recomputed=inputs + layer, head=head,
                    tokenizer=4 * tokenizer_size(recipe))
    return Measured(model, trained, counts, found)


def tokenizer_size(recipe: Recipe) -> int:
    """Elements of an image tokenizer, its codebook among them; used in fp32, it takes four bytes for each."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return sum(t.numel() for t in _tokenizer(recipe).state_dict().values())


def _tokenizer(recipe: Recipe) -> nn.Module:
    return build_tokenizer(recipe.image_tokenizer, _features(recipe))


def _features(recipe: Recipe) -> nn.Module | None:
    return recipe.features and vision(recipe.features, recipe.image_tokenizer.image, weights=False)


def _row(model: UnifiedModel, stage: NextToken) -> tuple[int, int]:
    """Bytes saved by a forward pass: once, and for each packed row."""
    from transformers import AttentionInterface

    def attend(module, query, key, value, mask, **_):
        return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION, attend)
    backbone = model.backbone
    backbone.set_attn_implementation(ATTENTION)
    model.train()

    def saved_by(rows: int) -> int:
        position = torch.arange(stage.seq_len).expand(rows, -1)
        with (saved := Saved(model)), torch.autocast("cpu", torch.bfloat16, enabled=stage.precision == "bf16"):
            embedded, _ = model.image_input(backbone.get_input_embeddings(), torch.zeros_like(position))
            backbone.base_model(inputs_embeds=embedded, position_ids=position, use_cache=False)
        return saved.bytes

    one, two = saved_by(1), saved_by(2)
    return 2 * one - two, two - one


def _pictures(recipe: Recipe, stage: PictureStage, name: str) -> Measured:
    """Of an image tokenizer what it learns by its pixels: without the losses that its configuration asks for beside."""
    side = recipe.image_tokenizer.image
    module = _features(recipe) if isinstance(stage, Contrast) else _tokenizer(recipe)
    if module is None:
        raise ConfigError(f"stage {name!r} trains the recipe's features, and there are none; set features")
    if isinstance(stage, Detokenize):
        grid, dim, side = module.grid, module.dim, side * recipe.decoder.scale
        if recipe.decoder.condition == "hidden" and isinstance(recipe.backbone, FreshBackbone):
            dim = recipe.backbone.width  # of a published one the codes' channels stand in: a plan downloads nothing
        module = FlowDetokenizer(recipe.decoder, module, dim)
    trained = apply(module.train(), stage.train, {}, {}, f"stages.{name}.train")
    sizes = _settled(module, stage)
    for part in module.modules():
        if isinstance(part, Quantizer):
            part.eval()  # in training they look at numbers, which are not there

    def passed(images: int) -> tuple[int, float]:
        pixels = torch.zeros(images, 3, side, side, dtype=next(module.parameters()).dtype)
        with (FlopCounterMode(display=False) as flops, (saved := Saved(module)),
              torch.autocast("cpu", torch.bfloat16, enabled=stage.precision == "bf16")):
            if isinstance(module, FlowDetokenizer):
                module(pixels, pixels[:, 0, 0, 0], pixels.new_zeros(images, dim, *grid))
            else:
                module(pixels)
        return saved.bytes, flops.get_total_flops()

    (one, flops), (two, _) = passed(1), passed(2)
    counts = Counts(**sizes, once=2 * one - two, row=two - one, row_recomputed=two - one)
    # A convolution multiplies one weight at many places: what counts is how often, two FLOPs each time.
    return Measured(module, trained, counts, Multiplied(body=flops // 2, head=0, layers=0, width=0))


def _settled(module: nn.Module, stage: Stage) -> dict[str, int]:
    """Give the weights the type that the engine keeps them in; the counts of their elements."""
    every = list(module.parameters())
    for p in every if stage.precision == "bf16" and stage.zero else ():
        p.data = p.data.to(torch.bfloat16)
    moved = block_matrices(module) if isinstance(stage.optimizer, Muon) else ()
    return {"parameters": sum(p.numel() for p in every), "trained": sum(p.numel() for p in every if p.requires_grad),
            "matrices": sum(p.numel() for p in moved), "small": sum(p.numel() for p in every if p.numel() < PERSIST)}
