"""Three optimizer steps from an imported checkpoint: losses fall, image rows move."""

import numpy as np
import pytest
import torch
from model.released import NoTokenizer, layout_of, recipe_of, theirs

from unimm.pictures import to_png
from unimm.sample import Codes, Image, Text, sample
from unimm.stream.batches import make_batch
from unimm.system import new_model


def batch_of(layout, size: tuple[int, int]):
    """Drawing and describing, packed: text and image positions learned in one row."""
    rng = np.random.default_rng(0)
    codes = [Codes.of_grid(rng.integers(24, size=size)) for _ in range(4)]
    seen = to_png(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)) if layout.config.read else None
    made = [sample(Text("a dot"), Image(code, learn=True)) for code in codes[:2]]
    made += [sample(Image(code, seen=seen), Text("what is it?"), Text("two dots", learn=True)) for code in codes[2:]]
    rows = [[layout.render(each) for each in made]]
    return make_batch(rows, sum(map(len, rows[0])) + 2, layout.pad_id, layout.vocab.is_code), codes[0]


@pytest.mark.parametrize("kind", ["chameleon", "emu3", "janus", "gemma2", "qwen2"])
def test_three_steps_from_an_imported_checkpoint(kind, tmp_path):
    theirs(kind).save_pretrained(tmp_path)
    layout = layout_of(kind)
    torch.manual_seed(0)
    model = new_model(recipe_of(kind, tmp_path), layout, NoTokenizer()).train()
    batch, drawn = batch_of(layout, layout.config.sizes[0])
    book = layout.vocab.ranges["visual"]
    tables = {"in": model.image_input.codes.weight, "out": model.image_output.vision_head.weight} if kind == "janus" \
        else {"in": model.backbone.get_input_embeddings().weight, "out": model.backbone.get_output_embeddings().weight}
    first = 0 if kind == "janus" else book.start
    before = {name: table.detach().clone() for name, table in tables.items()}
    optimizer, curves = torch.optim.AdamW(model.parameters(), lr=2e-3), {"text": [], "image": []}
    for _ in range(4):
        losses = model(batch)
        for name, (total, count) in losses.parts.items():
            curves[name].append(float(total) / int(count))
        optimizer.zero_grad()
        (losses.total / model.weigh(batch)[0]).backward()
        optimizer.step()
    for name, curve in curves.items():
        assert np.isfinite(curve).all() and (np.diff(curve) < 0).all(), (name, curve)
    rows = first + torch.from_numpy(np.unique(drawn.levels[0].ids)).long()
    for name, table in tables.items():
        assert ((table - before[name])[rows].abs().amax(1) > 1e-4).all(), name
