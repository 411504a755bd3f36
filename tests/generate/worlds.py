"""Small random models over toy layouts, and requests of every kind."""

from dataclasses import replace

import numpy as np
import torch
from ten_systems import TEN, content

from unimm.config.model import DepthHead as DepthConfig
from unimm.config.model import FlowHead as FlowConfig
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.sampling import Choice, Sampling
from unimm.generate.request import Request, drawing
from unimm.layout import Layout
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput, Places, VectorInput, VisionInput
from unimm.model.image_output import DepthHead, FlowHead, ImageHead
from unimm.model.unified import UnifiedModel
from unimm.sample import Image, Text

FREE = Sampling(image=Choice(), text=Choice(temperature=2.0), guidance=2.0, text_length=16)


def model_of(layout: Layout, places: int = 0, family: str = "qwen3") -> UnifiedModel:
    """A model whose choices are far apart, and that begins an image now and then."""
    torch.manual_seed(0)
    shape = FreshBackbone(family=family, width=16, layers=2, heads=4, kv_heads=2, mlp=32)
    made = build_backbone(shape, layout.vocab, SharedTable(rows="normal"), {})
    begins = sorted({plan.header[0] for plan in layout.write_plans.values()})
    own = next((r for r in layout.vocab.ranges.values() if not r.shared), None)
    several = [*(r for r in layout.vocab.ranges.values() if r.depth > 1), *(layout.vectors.values() if not own else ())]
    if several:
        space, continuous = several[0], several[0].name in layout.vectors
        is_code = np.zeros(layout.vocab.size, bool)
        is_code[space.start:space.stop] = True
        reads = VectorInput(Places(9, is_code, begins, 16), Vectors(space.codes, space.depth, continuous), space,
                            continuous, 2, 16)
        writes = (FlowHead(FlowConfig(width=16, layers=1, steps=4), space, 16, 5) if continuous
                  else DepthHead(DepthConfig(width=16, layers=1, heads=2), space, 16))
    elif own is None:
        reads, writes = ImageInput(Places(places, layout.vocab.is_code, begins, 16) if places else None), None
    else:
        vision = torch.nn.Module()
        vision.config = type("Config", (), {"hidden_size": 6})
        reads, writes = VisionInput(vision, "vision", 0, own, 8, 2, 16), ImageHead(own, 16, 16)
    model = UnifiedModel(made, layout.vocab, reads, image_output=writes)
    for parameter in model.parameters():
        parameter.data.mul_(6.0)
    made.get_output_embeddings().weight.data[begins] *= 6.0 if several else 4.0
    return model.eval()


class Vectors(torch.nn.Module):
    """What a VectorInput asks of an image tokenizer; latents are read as what all before them add up to."""

    def __init__(self, codes: int, depth: int, continuous: bool):
        super().__init__()
        self.dim = depth if continuous else 6
        self.table = torch.nn.Embedding(codes * depth, 6)
        self.offset = codes * torch.arange(depth)

    def vectors_of(self, ids):
        return self.table(ids + self.offset).sum(-2)

    def expand(self, latents):
        return latents.cumsum(1)


def mixed(name: str, layout: Layout, n: int = 16, **changes) -> list[Request]:
    """Text, drawings of up to three sizes, edits and interleaved documents, no two alike."""
    sampling, rng, sizes, made = replace(FREE, **changes), np.random.default_rng(0), layout.config.sizes, []
    for k in range(n):
        words, size = Text("x" * (1 + k % 5) + str(k)), sizes[k % min(3, len(sizes))]
        said = (Image(content(name, rng, False), role="user"), replace(words, role="user"))
        match k % 4:
            case 0:
                made.append(Request((words,), sampling, k))
            case 1:
                made.append(drawing((words,), sampling, size, k))
            case 2:
                three = 0.0 if layout.config.unconditional == "replace" else 1.5
                made.append(drawing(said, replace(sampling, image_guidance=three), size, k))
            case 3:
                made.append(Request(said, sampling, k, size if k % 8 == 3 else None, images=2))
    return made


SHARED = ("liquid", "emu3", "illume_plus", "lavit")
"""Toy systems whose codes are ids of depth 1, each written in another way."""

DRAWN = ("fqgan", "ming_univision")
"""Toy systems in which one id stands for several codes, or for a latent."""

LAYOUTS = {name: TEN[name].build() for name in (*SHARED, "janus", *DRAWN)}
