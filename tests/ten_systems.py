"""The layouts of the ten systems in which every axis moves, at toy size: written as data, no special case."""

from dataclasses import dataclass

import numpy as np

from unimm.config.tokens import Chat, Codebook, Continuous, Grid, ImageLayout, LevelLayout, Line, UpTo
from unimm.config.tokens import Layout as LayoutConfig
from unimm.layout import Layout
from unimm.sample import Codes, Latents, Level, Pixels
from unimm.text import BytesTokenizer

TURNS = Chat(system=("<sys>", ""), user=("<user>", ""), assistant=("<bot>", "<end>"))


@dataclass(frozen=True)
class Toy:
    layout: LayoutConfig
    codebooks: tuple[Codebook, ...] = ()
    continuous: tuple[Continuous, ...] = ()
    special_ids: tuple[tuple[str, int], ...] = ()

    def build(self) -> Layout:
        return Layout(self.layout, BytesTokenizer(), self.codebooks, self.continuous, dict(self.special_ids))


def plain(begin: str, end: str, *levels: LevelLayout, **changes) -> LayoutConfig:
    stop = changes.pop("stop", "marker")
    return LayoutConfig(write=ImageLayout(begin=begin, levels=levels, end=end, stop=stop),
                        **{"sizes": ((3, 3),), "chat": TURNS, **changes})


VISUAL = Codebook(name="visual", size=40)
CODES = LevelLayout(space="visual")

TEN = {
    "liquid": Toy(plain("<unused0>", "<unused1>", CODES, unconditional="replace", replacement="<unused2>"), (VISUAL,)),
    "emu3": Toy(
        plain("<|image start|>{h}*{w}<|image token|>", "<|extra_201|><|image end|>",
              LevelLayout(space="visual", row_end="<|extra_200|>", row_ends="after"),
              sizes=((2, 3), (3, 2), (1, 1), (12, 1)), pixels_per_code=8, learn="codes"), (VISUAL,)),
    "janus": Toy(
        plain("<begin_of_image>", "<end_of_image>", CODES, stop="count", unconditional="pad",
              read=ImageLayout(begin="<begin_of_image>", levels=(LevelLayout(space="vision"),), end="<end_of_image>")),
        (Codebook(name="visual", size=40, shared=False),),
        (Continuous(name="vision", channels=6, placeholder="<image_placeholder>"),)),
    "seed_llama": Toy(plain("<img>", "</img>", LevelLayout(space="visual", shape=Line(length=8))), (VISUAL,)),
    "tokenflow": Toy(plain("<boi>", "<eoi>", CODES), (VISUAL,)),
    "illume_plus": Toy(
        plain("<height_{H}><width_{W}><start_of_image>", "<end_of_image>",
              LevelLayout(space="semantic", before="<start_of_level0>", row_end="<end_of_line>", row_ends="after",
                          after="<end_of_level0>"),
              LevelLayout(space="pixel", shape=Grid(scale=2), before="<start_of_level1>", row_end="<end_of_line>",
                          row_ends="after", after="<end_of_level1>"),
              sizes=((2, 3), (3, 2))),
        (Codebook(name="semantic", size=30), Codebook(name="pixel", size=50))),
    "fqgan": Toy(plain("<boi>", "<eoi>", CODES), (Codebook(name="visual", size=40, depth=4),)),
    "lavit": Toy(plain("<img>", "</img>", LevelLayout(space="visual", shape=UpTo(longest=7, shortest=2))), (VISUAL,)),
    "ett": Toy(plain("<boi>", "<eoi>", CODES, pixels_per_code=2), (VISUAL,)),
    "ming_univision": Toy(
        plain("<boi>", "<eoi>", LevelLayout(space="latent", shape=Line(length=5))), (),
        (Continuous(name="latent", channels=4, placeholder="<latent>"),)),
}


def content(name: str, rng: np.random.Generator, learn: bool):
    """A random image of the system's kind, as it is read or written."""
    config = TEN[name].layout
    h, w = config.sizes[rng.integers(len(config.sizes))]

    def level(book: int, rows: int, columns: int) -> Level:
        b = TEN[name].codebooks[book]
        return Level(rng.integers(b.size, size=(rows * columns, b.depth)), (rows, columns))

    match name:
        case "janus" if not learn:
            return Latents(rng.standard_normal((9, 6)).astype(np.float32), (3, 3))
        case "seed_llama":
            return Codes((Level(rng.integers(40, size=(8, 1))),))
        case "lavit":
            return Codes((Level(rng.integers(40, size=(rng.integers(2, 8), 1))),))
        case "illume_plus":
            return Codes((level(0, h, w), level(1, 2 * h, 2 * w)))
        case "ett":
            return Pixels(rng.integers(256, size=(6, 6, 3), dtype=np.uint8))
        case "ming_univision":
            return Latents(rng.standard_normal((5, 4)).astype(np.float32))
        case _:
            return Codes((level(0, h, w),))
