"""The recipe's ways to read and to write images as modules, checked against its layout."""

from pathlib import Path
from typing import assert_never

import numpy as np
from torch import nn

from unimm.config import model as config
from unimm.config.check import ConfigError
from unimm.layout import Layout
from unimm.model.image_input import ImageInput, Places, VectorInput, VisionInput
from unimm.model.image_output import DepthHead, FlowHead, ImageHead
from unimm.published import vision
from unimm.vocab import Range


def image_input(wanted: config.ImageIn, layout: Layout, width: int, kept: Path | None = None,
                weights: bool = True, tokenizer: nn.Module | None = None) -> ImageInput:
    """What reads images into `width` channels. `kept` holds a published encoder's config.json, for `weights` False;
    `tokenizer` is the image tokenizer, whose vectors some read.

    Raises ConfigError where the layout has images in another form than this reads.
    """
    plans, books = [*layout.write_plans.values(), *layout.read_plans.values()], layout.vocab.ranges
    most = max(sum(plan.lengths(level)[1] for level in range(len(plan.grids))) for plan in plans)
    begins, places = sorted({plan.header[0] for plan in plans}), getattr(wanted, "places", 0)
    if 0 < places < most:
        raise ConfigError(f"image_in.places is {places}, but an image of this layout has {most} codes")
    match wanted:
        case config.SharedTable():
            if strange := [*layout.continuous, *(r.name for r in books.values() if not r.shared or r.depth > 1)]:
                raise ConfigError(f"image_in is a shared table, which does not read {strange[0]!r}; make that a shared "
                                  "codebook of depth 1, or take VisionFeatures, CodeVectors or LatentVectors")
            return ImageInput(Places(places, layout.vocab.is_code, begins, width) if places else None)
        case config.VisionFeatures(encoder=encoder, image=image, dim=dim, depth=depth):
            seeing = vision(config.PretrainedVision(path=str(kept)) if kept else encoder, image, weights)
            space = _seen_space(layout, seeing.config)
            own = own_range(layout) if any(not r.shared for r in books.values()) else None
            return VisionInput(seeing, space, image, own, dim, depth, width)
        case config.CodeVectors(depth=depth) | config.LatentVectors(depth=depth):
            latents = isinstance(wanted, config.LatentVectors)
            space = _one([*(layout.vectors if latents else books).values()],
                         f"image_in reads vectors of one {'continuous space' if latents else 'codebook'}")
            asked = {space.name: space.depth if latents else (space.codes, space.depth)}
            if space.order is not None or asked != (tokenizer.channels if latents else tokenizer.books):
                raise ConfigError(f"image_in reads the tokenizer's vectors of {asked} (codes and depth, or channels), "
                                  f"but that makes {tokenizer.books | tokenizer.channels}")
            ids = np.arange(layout.vocab.size)
            is_code = (ids >= space.start) & (ids < space.stop)
            where = Places(places, is_code, begins, width) if places else None
            return VectorInput(where, tokenizer, space, latents, depth, width)
        case _:
            assert_never(wanted)


def image_output(wanted: config.ImageOut, layout: Layout, width: int) -> ImageHead | DepthHead | FlowHead | None:
    """What writes the codes that are no rows of the language model's; None where it writes all.

    Raises ConfigError where the layout has no such codes, or has them and nothing writes them.
    """
    written = [layout.spaces[level.space] for level in layout.config.write.levels]
    match wanted:
        case config.SharedSoftmax():
            if other := [r.name for r in written if not r.shared or r.size < r.codes or r.name in layout.vectors]:
                raise ConfigError(f"image_out is the shared softmax, which can't write {other[0]!r}: take SeparateHead "
                                  "for shared=False, DepthHead for several codes a position, FlowHead for latents")
            return None
        case config.DepthHead():
            space = _one([r for r in written if r.depth > 1 and r.name not in layout.vectors],
                         "a depth head writes one codebook of several codes a position")
            return DepthHead(wanted, space, width)
        case config.FlowHead():
            space = _one([r for r in written if r.name in layout.vectors], "a flow head writes one space")
            most = max(plan.lengths(0)[1] for plan in layout.write_plans.values())
            return FlowHead(wanted, space, width, most)
        case config.SeparateHead(width=inner):
            if layout.config.write.levels[0].shape.kind == "up_to":
                raise ConfigError("image_out is a separate head, which can't say that an image ends, but the layout's "
                                  "images end by the model's choice; give them a fixed length")
            return ImageHead(own_range(layout), width, inner or width)
        case _:
            assert_never(wanted)


def _one(spaces: list[Range], what: str, fits: bool = True) -> Range:
    if len(spaces) != 1 or not fits:
        found = ", ".join(f"{r.name} of depth {r.depth}" for r in spaces) or "none"
        raise ConfigError(f"{what}, but the recipe's are: {found}")
    return spaces[0]


def own_range(layout: Layout) -> Range:
    """The one codebook that is not shared."""
    own = [r for r in layout.vocab.ranges.values() if not r.shared]
    return _one(own, "a table or a head of its own serves one codebook of depth 1 with shared=False",
                all(r.depth == 1 for r in own))


def _seen_space(layout: Layout, seen) -> str:
    """The space that is read, which has to have the places and channels of an encoder's features."""
    spaces = {level.space for level in layout.config.read.levels} if layout.config.read else set()
    if len(spaces) != 1 or not spaces <= layout.continuous.keys():
        raise ConfigError("image_in reads features, so the layout's `read` has one level whose space is one of "
                          f"`continuous` ({', '.join(layout.continuous) or 'none'})")
    space, places = spaces.pop(), (seen.image_size // seen.patch_size) ** 2
    if (channels := layout.continuous[space].channels) != seen.hidden_size:
        raise ConfigError(f"{space!r} has {channels} channels, but the encoder's have {seen.hidden_size}; state that")
    if wrong := [plan.lengths(0)[1] for plan in layout.read_plans.values() if plan.lengths(0) != (places, places)]:
        raise ConfigError(f"the encoder gives {places} features, but the layout reads an image as "
                          f"{wrong[0]} positions; change image_in.image, its patch or the layout's sizes")
    return space


def released_parts(image_in: config.ImageIn, image_out: config.ImageOut) -> dict[str, tuple[str, str]]:
    """The modules of a UnifiedModel that are taken from a released Janus: its path, and its own name for each."""
    found = {}
    if isinstance(image_in, config.VisionFeatures) and image_in.weights:
        names = {"aligner": "aligner", "codes": "generation_embeddings", "code_aligner": "generation_aligner"}
        found = {f"image_input.{own}": (image_in.weights, name) for own, name in names.items()}
    if isinstance(image_out, config.SeparateHead) and image_out.weights:
        found["image_output"] = (image_out.weights, "generation_head")
    return found


def take(own: nn.Module, path: str, whole: nn.Module, name: str) -> None:
    """Fill a module with a part of a released Janus: `aligner`, `generation_embeddings` and their like. Raises
    ConfigError where it is none, or the shapes are not the recipe's."""
    if whole.config.model_type != "janus":
        raise ConfigError(f"{path} is {whole.config.model_type}, which has no {name}; name a released Janus, or leave "
                          "weights empty")
    if (acts := {whole.config.vision_config.hidden_act, whole.config.vq_config.hidden_act}) != {"gelu"}:
        raise ConfigError(f"{path}: aligners and head around {' and '.join(sorted(acts))}; only around gelu are read")
    theirs = getattr(whole.model, name)
    ours, found = ({k: tuple(t.shape) for k, t in m.state_dict().items()} for m in (own, theirs))
    if ours != found:
        wrong = min(k for k in ours.keys() | found.keys() if ours.get(k) != found.get(k))
        raise ConfigError(f"{path}: {name}.{wrong} is {found.get(wrong, 'absent')}, where the recipe has "
                          f"{ours.get(wrong, 'nothing')}; state the release's depth, dim and width")
    own.load_state_dict(theirs.state_dict())
