"""What a stage's model is made of and keeps for backward, from one forward pass on tensors without storage.

torch's FakeTensorMode gives every tensor a shape and a type and no memory, so a model of any size is built from its
configuration alone, and autograd says by itself what it would save: no formula of our own to go wrong.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from unimm.config.check import ConfigError
from unimm.config.model import Backbone, PretrainedBackbone, SharedTable
from unimm.config.recipe import Recipe
from unimm.config.stages import Contrast, Detokenize, Muon, NextToken, PictureStage, Stage
from unimm.hardware import Multiplied
from unimm.images.quantizer import Quantizer
from unimm.images.tokenizer import build_tokenizer
from unimm.layout import Layout
from unimm.model.backbone import build_backbone, recompute_layers
from unimm.model.cross_entropy import chunk_of
from unimm.model.multiplied import has_experts, multiplied
from unimm.plan.memory import Counts, Head
from unimm.published import vision
from unimm.system import around, new_rows
from unimm.train.optimizer import block_matrices
from unimm.train.table import PERSIST
from unimm.train.trains import Trained, apply
from unimm.vocab import Vocab

if TYPE_CHECKING:
    from unimm.model.unified import UnifiedModel

ATTENTION = "unimm_plan"


@dataclass(frozen=True)
class Measured:
    """A stage's model, on tensors without storage: what the memory depends on, and what one token (or image) costs."""

    module: nn.Module
    trained: Trained
    counts: Counts
    multiplied: Multiplied


def skeleton(config: Backbone, vocab: Vocab) -> nn.Module:
    """The backbone's modules at `vocab.rows` rows, from its configuration alone. Raises ConfigError for a hub id."""
    if isinstance(config, PretrainedBackbone) and not (Path(config.path) / "config.json").is_file():
        raise ConfigError(f"a plan downloads nothing, and there is no {config.path}/config.json; put the model's "
                          "config.json into a folder and name that folder as backbone.path")
    backbone = build_backbone(config, vocab, SharedTable(), {}, weights=False)
    if has_experts(backbone):
        raise ConfigError(f"{config.path} ({backbone.config.model_type}) is a mixture of experts, whose activations "
                          "depend on where tokens are sent; a plan counts dense models only: plan one of the same "
                          "width and layers")
    if backbone.config.tie_word_embeddings:  # which transformers does not do for tensors without storage
        backbone.get_output_embeddings().weight = backbone.get_input_embeddings().weight
    return backbone


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
        match stage:
            case PictureStage():
                return _pictures(recipe, stage, name)
            case NextToken():
                return _language(recipe, layout, stage, name, device)
            case _:
                assert_never(stage)


def _language(recipe: Recipe, layout: Layout, stage: NextToken, name: str, device: str) -> Measured:
    model = around(skeleton(recipe.backbone, layout.vocab), recipe, layout, weights=False,
                   tokenizer=build_tokenizer(recipe.image_tokenizer, _features(recipe)))
    new = new_rows(recipe, layout, model)
    # peft moves its adapters to where they are already; torch can't replace tensors without storage by themselves.
    with mock.patch.object(nn.Module, "_apply", lambda module, change, recurse=True: module):
        trained = apply(model, stage.train, new, model.parts(), f"stages.{name}.train")
    _settle(model, stage)
    once, plain = _row(model, stage)
    recompute_layers(model.backbone, reentrant=False)
    _, inputs = _row(model, stage)
    found = multiplied(model)
    layer = (plain - inputs) // found.layers
    out = model.backbone.get_output_embeddings()
    head = Head(ids=out.out_features, width=out.in_features, trained=out.weight.requires_grad,
                capped=model.cap is not None, chunk=chunk_of(out.out_features, device))
    counts = _counts(model, stage, once, plain, inputs + layer, head, 4 * tokenizer_size(recipe))
    return Measured(model, trained, counts, found)


def tokenizer_size(recipe: Recipe) -> int:
    """Elements of an image tokenizer, its codebook among them; used in fp32, it takes four bytes for each."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return sum(t.numel() for t in build_tokenizer(recipe.image_tokenizer, _features(recipe)).state_dict().values())


def _features(recipe: Recipe) -> nn.Module | None:
    return recipe.features and vision(recipe.features, recipe.image_tokenizer.image, weights=False)


def _row(model: "UnifiedModel", stage: NextToken) -> tuple[int, int]:
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
    from unimm.diffusion.detokenizer import FlowDetokenizer

    side = recipe.image_tokenizer.image
    module = _features(recipe) if isinstance(stage, Contrast) else build_tokenizer(
        recipe.image_tokenizer, _features(recipe))
    if module is None:
        raise ConfigError(f"stage {name!r} trains the recipe's features, and there are none; set features")
    if isinstance(stage, Detokenize):
        grid, dim, side = module.grid, module.dim, side * recipe.decoder.scale
        module = FlowDetokenizer(recipe.decoder, module, dim)
    trained = apply(module.train(), stage.train, {}, {}, f"stages.{name}.train")
    _settle(module, stage)
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
    counts = _counts(module, stage, 2 * one - two, two - one, two - one)
    # A convolution multiplies one weight at many places: what counts is how often, two FLOPs each time.
    return Measured(module, trained, counts, Multiplied(body=flops // 2, head=0, layers=0, width=0))


def _settle(module: nn.Module, stage: Stage) -> None:
    """Give the weights the type that the engine keeps them in."""
    if stage.precision == "bf16" and stage.zero:
        for p in module.parameters():
            p.data = p.data.to(torch.bfloat16)


def _counts(module: nn.Module, stage: Stage, once: int, row: int, recomputed: int, head: Head | None = None,
            tokenizer: int = 0) -> Counts:
    trained = [p for p in module.parameters() if p.requires_grad]
    moved = block_matrices(module) if isinstance(stage.optimizer, Muon) else set()
    return Counts(
        parameters=sum(p.numel() for p in module.parameters()), trained=sum(p.numel() for p in trained),
        matrices=sum(p.numel() for p in moved), once=once, row=row, row_recomputed=recomputed, head=head,
        tokenizer=tokenizer,
        small=sum(p.numel() for p in module.parameters() if p.numel() < PERSIST))
