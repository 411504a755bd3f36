"""What an image is guided by: further forms of its context, and how their logits are weighed.

    none         the row alone
    two-way      u + s (f - u)                        Ho & Salimans 2022, arXiv:2207.12598
    three-way    u + s_i (i - u) + s_t (f - i)        InstructPix2Pix, arXiv:2211.09800; Chameleon's release

    f  the full context   i  its images alone   u  nothing of it, in the layout's own form, or negative words instead
"""

import sys
from dataclasses import dataclass, replace
from functools import cache

from unimm.config.model import PretrainedBackbone
from unimm.config.recipe import Recipe
from unimm.config.sampling import Sampling
from unimm.layout import Layout
from unimm.sample import Image, Part, Sequence, Text


@dataclass(frozen=True)
class Guides:
    """The other branches of a row that writes an image: its logits are the weighted sum of all branches' logits.

    prompts   what each of them reads, up to the image's first code
    weights   the row's own weight, then one of each prompt; they add up to 1
    """

    prompts: tuple[Sequence, ...]
    weights: tuple[float, ...]


def guides(layout: Layout, sampling: Sampling, parts: tuple[Part, ...], size: tuple[int, int]) -> Guides | None:
    """What guides an image of `size` (rows, columns) after `parts`; None where nothing does.

    Branches of no weight are left out. Raises LayoutError where the layout can't write a form that is asked for.
    """
    text, image = sampling.guidance, sampling.image_guidance
    if image and any(isinstance(part, Image) for part in parts):
        keep, weights = (True, False), (image - text, 1 - image)
    else:
        keep, weights = (None,), (1 - text,)
    used = [(k, weight) for k, weight in zip(keep, weights) if weight]
    if not parts or not used:
        return None
    prompts = tuple(_forgotten(layout, sampling.negative, parts, size, k) for k, _ in used)
    return Guides(prompts, (text, *(weight for _, weight in used)))


def _forgotten(layout: Layout, negative: str, parts: tuple[Part, ...], size, keep: bool | None) -> Sequence:
    """The context without its words, or with others in their place; `keep` as `images` of `Layout.prompt`."""
    if not negative:
        return layout.prompt(parts, "image", size, unconditional=True, images=keep)
    role = parts[-1].role and "user"
    kept = layout.config.forgets_words_only if keep is None else keep
    shown = tuple(replace(part, role=role) for part in parts if isinstance(part, Image) and kept)
    return layout.prompt((*shown, Text(negative, role=role)), "image", size)


def warn(recipe: Recipe, sampling: Sampling, images: bool = False) -> None:
    """Say on stderr what is `untrained`, each line once in a process."""
    for line in untrained(recipe, sampling, images):
        _say(line)


@cache
def _say(line: str) -> None:
    print(f"unimm: warning: {line}", file=sys.stderr)


def untrained(recipe: Recipe, sampling: Sampling, images: bool = False) -> list[str]:
    """What the settings ask for that no stage trained, in a line each; `images`: of a context that holds some.

    What a published model's own settings ask for is known to work, whatever the recipe's stages do.
    """
    stages, release = recipe.language, recipe.sampling if isinstance(recipe.backbone, PretrainedBackbone) else None
    three = images and sampling.image_guidance not in (0, sampling.guidance)
    found = []
    if sampling.guidance == 1 and not three:
        return found
    forgets = any(stage.drop_context and any(use.task != "caption" for use in stage.mix) for stage in stages.values())
    if not forgets and (release is None or release.guidance == 1):
        last = next(reversed(stages), "sft")
        found.append(f"guidance {sampling.guidance:g} is asked for, but no stage of {recipe.name} trained the "
                     f"unconditional form; train with --stages.{last}.drop_context 0.1, or ask for guidance 1")
    if three and not recipe.layout.forgets_words_only and not (release and release.image_guidance):
        found.append(f"image_guidance {sampling.image_guidance:g} is asked for, but no stage of {recipe.name} trained "
                     "a context of images without words; 0 guides by the whole context")
    if sampling.negative and not recipe.sampling.negative:
        found.append(f"a negative prompt is asked for, but no stage of {recipe.name} trained with one; its "
                     "unconditional form is what guidance is made for")
    return found
