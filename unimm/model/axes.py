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
from unimm.published import janus_part, vision
from unimm.vocab import Range


def image_input(wanted: config.ImageIn, layout: Layout, width: int, kept: Path | None = None,
                weights: bool = True, tokenizer: nn.Module | None = None) -> ImageInput | VisionInput | VectorInput:
    """What reads images into `width` channels. `kept` holds a published encoder's config.json, for `weights` False;
    `tokenizer` is the image tokenizer, whose vectors some read.

    Raises ConfigError where the layout has images in another form than this reads.
    """
    plans = [*layout.write_plans.values(), *layout.read_plans.values()]
    most = max(sum(plan.lengths(level)[1] for level in range(len(plan.grids))) for plan in plans)
    begins, places = sorted({plan.header[0] for plan in plans}), getattr(wanted, "places", 0)
    if 0 < places < most:
        raise ConfigError(f"image_in.places is {places}, but an image of this layout has {most} codes")
    match wanted:
        case config.SharedTable():
            if strange := [*layout.continuous, *(r.name for r in layout.vocab.ranges.values()
                                                 if not r.shared or r.depth > 1)]:
                raise ConfigError(f"image_in is a shared table, which does not read {strange[0]!r}; make that a shared "
                                  "codebook of depth 1, or set image_in to what reads it: VisionFeatures, CodeVectors, "
                                  "LatentVectors")
            return ImageInput(wanted, layout.vocab, begins, width)
        case config.VisionFeatures(encoder=encoder, image=image, dim=dim, depth=depth):
            space = _read_space(layout)
            if kept:
                encoder = config.PretrainedVision(path=str(kept))
            seeing = vision(encoder, image, weights)
            _check_features(layout, space, seeing.config)
            own = any(not r.shared for r in layout.vocab.ranges.values())
            return VisionInput(seeing, space, image, own_range(layout) if own else None, dim, depth, width)
        case config.CodeVectors(depth=depth):
            space = _one(layout, layout.vocab.ranges.values(), "code vectors are of one codebook")
            if space.order is not None or tokenizer.books != {space.name: (space.codes, space.depth)}:
                raise ConfigError(f"image_in reads the tokenizer's vectors of {space.name!r} ({space.codes} codes, "
                                  f"{space.depth} a position), but the tokenizer makes {tokenizer.books}")
            return VectorInput(tokenizer, space, False, width, depth, _places(wanted, layout, space, begins, width))
        case config.LatentVectors(depth=depth):
            space = _one(layout, layout.vectors.values(), "latent vectors are of one continuous space")
            if tokenizer.channels != {space.name: space.depth}:
                raise ConfigError(f"image_in reads latents of {space.name!r} ({space.depth} channels), but the "
                                  f"tokenizer makes {tokenizer.channels or tokenizer.books}")
            return VectorInput(tokenizer, space, True, width, depth, _places(wanted, layout, space, begins, width))
        case _:
            assert_never(wanted)


def _places(wanted: config.CodeVectors | config.LatentVectors, layout: Layout, space: Range, begins: list[int],
            width: int) -> Places | None:
    is_code = np.zeros(layout.vocab.size, bool)
    is_code[space.start:space.stop] = True
    return Places(wanted.places, is_code, begins, width) if wanted.places else None


def image_output(wanted: config.ImageOut, layout: Layout, width: int) -> ImageHead | DepthHead | FlowHead | None:
    """What writes the codes that are no rows of the language model's; None where it writes all.

    Raises ConfigError where the layout has no such codes, or has them and nothing writes them.
    """
    written = [layout.spaces[level.space] for level in layout.config.write.levels]
    match wanted:
        case config.SharedSoftmax():
            if own := [r.name for r in written if not r.shared]:
                raise ConfigError(f"codebook {own[0]!r} has shared=False, but image_out is the shared softmax; set "
                                  "image_out to SeparateHead, or shared to True")
            if several := [r.name for r in written if r.size < r.codes or r.name in layout.vectors]:
                raise ConfigError(f"image_out is the shared softmax, which can't write {several[0]!r}: take DepthHead "
                                  "for several codes a position, FlowHead for latents")
            return None
        case config.DepthHead():
            space = _one(layout, [r for r in written if r.depth > 1 and r.name not in layout.vectors],
                         "a depth head writes one codebook of several codes a position")
            return DepthHead(wanted, space, width)
        case config.FlowHead():
            space = _one(layout, [r for r in written if r.name in layout.vectors], "a flow head writes one space")
            most = max(plan.lengths(0)[1] for plan in layout.write_plans.values())
            return FlowHead(wanted, space, width, most)
        case config.SeparateHead(width=inner):
            if layout.config.write.levels[0].shape.kind == "up_to":
                raise ConfigError("image_out is a separate head, which can't say that an image ends, but the layout's "
                                  "images end by the model's choice; give them a fixed length")
            return ImageHead(own_range(layout), width, inner or width)
        case _:
            assert_never(wanted)


def _one(layout: Layout, spaces, what: str) -> Range:
    found = list(spaces)
    if len(found) != 1:
        raise ConfigError(f"{what}, but the recipe's are: {', '.join(r.name for r in found) or 'none'}")
    return found[0]


def own_range(layout: Layout) -> Range:
    """The one codebook that is not shared."""
    own = [r for r in layout.vocab.ranges.values() if not r.shared]
    if len(own) != 1 or own[0].depth != 1:
        found = ", ".join(f"{r.name} of depth {r.depth}" for r in own) or "none"
        raise ConfigError("a table or a head of its own serves one codebook of depth 1 with shared=False, but the "
                          f"recipe's are: {found}")
    return own[0]


def _read_space(layout: Layout) -> str:
    read = layout.config.read
    spaces = {level.space for level in read.levels} if read else set()
    if len(spaces) != 1 or not spaces <= layout.continuous.keys():
        raise ConfigError("image_in reads features, so the layout's `read` has one level whose space is one of "
                          f"`continuous` ({', '.join(layout.continuous) or 'none'})")
    return spaces.pop()


def _check_features(layout: Layout, space: str, seen) -> None:
    """Refuse an encoder whose features are not what the layout has places for."""
    places = (seen.image_size // seen.patch_size) ** 2
    if (channels := layout.continuous[space].channels) != seen.hidden_size:
        raise ConfigError(f"{space!r} has {channels} channels, but the encoder's features have {seen.hidden_size}; "
                          "state that")
    if wrong := [plan.lengths(0)[1] for plan in layout.read_plans.values() if plan.lengths(0) != (places, places)]:
        raise ConfigError(f"the encoder gives {places} features, but the layout reads an image as "
                          f"{wrong[0]} positions; change image_in.image, its patch or the layout's sizes")


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
    """Fill a module with a part of a released Janus. Raises ConfigError where the shapes are not the recipe's."""
    theirs = janus_part(path, whole, name)
    ours, found = ({k: tuple(t.shape) for k, t in m.state_dict().items()} for m in (own, theirs))
    if ours != found:
        wrong = min(k for k in ours.keys() | found.keys() if ours.get(k) != found.get(k))
        raise ConfigError(f"{path}: {name}.{wrong} is {found.get(wrong, 'absent')}, where the recipe has "
                          f"{ours.get(wrong, 'nothing')}; state the release's depth, dim and width")
    own.load_state_dict(theirs.state_dict())
