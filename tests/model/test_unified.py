import numpy as np
import pytest
import torch

from unimm.config.model import FreshBackbone, PretrainedBackbone, SharedTable
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.layout import Layout
from unimm.model import attention
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput, Places
from unimm.model.unified import UnifiedModel
from unimm.sample import Batch
from unimm.text import BytesTokenizer

LAYOUT = Layout(
    LayoutConfig(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"), sizes=((2, 2),)),
    BytesTokenizer(), (Codebook(name="visual", size=8),))
TINY = dict(width=16, layers=2, heads=4, kv_heads=2, mlp=32)


def tiny(family: str):
    torch.manual_seed(0)
    backbone = build_backbone(FreshBackbone(family=family, **TINY), LAYOUT.vocab, SharedTable(rows="normal"), {})
    for parameter in backbone.parameters():  # at the usual tiny spread every output looks alike
        parameter.data.mul_(4.0)
    return backbone.eval()


def unified(backbone, places: int = 0, image_weight: float = 1.0, z_loss: float = 0.0) -> UnifiedModel:
    begins = [LAYOUT.vocab.special["<boi>"]]
    image_input = ImageInput(Places(places, LAYOUT.vocab.is_code, begins, 16) if places else None)
    model = UnifiedModel(backbone, LAYOUT.vocab, image_input)
    model.image_weight, model.z_loss = image_weight, z_loss
    return model


@pytest.mark.parametrize("kernel", ["documents", "mask"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_attention_over_packed_rows_equals_each_document_alone(family, kernel):
    backbone = tiny(family)
    model = unified(backbone)
    model.kernel = kernel
    rng = np.random.default_rng(0)
    rows = [[3, 9, 1, 4], [12, 3]]  # the second row ends in two positions of padding
    ids, position, document = np.zeros((2, 17), int), np.zeros((2, 17), int), np.zeros((2, 17), int)
    alone = {}
    for row, lengths in enumerate(rows):
        start = 0
        for n, length in enumerate(lengths):
            span = slice(start, start + length)
            ids[row, span] = rng.integers(260, size=length)
            position[row, span], document[row, span] = np.arange(length), n + 1
            backbone.set_attn_implementation("eager")
            alone[row, start, length] = backbone.model(torch.tensor(ids[row:row + 1, span])).last_hidden_state
            backbone.set_attn_implementation(attention.NAME)
            start += length
    hidden = model.hidden(torch.tensor(ids), torch.tensor(position), torch.tensor(document))
    for (row, start, length), expected in alone.items():
        torch.testing.assert_close(hidden[row:row + 1, start:start + length], expected, atol=1e-5, rtol=1e-5)


def batch(ids, learn, image):
    ids = np.array([ids])
    return Batch(ids=ids, targets=np.roll(ids, -1, 1), learn=np.array([learn], bool), image=np.array([image], bool),
                 position=np.arange(ids.shape[1])[None], document=np.ones_like(ids))


def test_the_loss_is_the_weighted_sum_over_learned_positions_with_text_and_image_apart():
    backbone = tiny("qwen3")
    b = batch([1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0])
    model = unified(backbone, image_weight=0.5)
    losses = model(b)
    logits = backbone(torch.tensor(b.ids)).logits[0].detach().double().numpy()
    nll = [np.log(np.exp(row).sum()) - row[t] for row, t in zip(logits, b.targets[0])]
    assert float(losses.parts["text"][0]) == pytest.approx(nll[1], abs=1e-5)
    assert float(losses.parts["image"][0]) == pytest.approx(nll[2] + nll[4], abs=1e-5)
    assert int(losses.parts["image"][1]) == 2
    assert float(losses.total.detach()) == pytest.approx(nll[1] + 0.5 * nll[2] + 0.5 * nll[4], abs=1e-5)
    assert model.weigh(b) == (2.0, 6)


def test_z_loss_falls_on_learned_positions_alone():
    """Defect 4: a z-loss whose mask was not shifted with the targets."""
    backbone = tiny("qwen3")
    b = batch([1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0])
    with_z, without = unified(backbone, z_loss=0.01)(b), unified(backbone)(b)
    at_learned = backbone(torch.tensor(b.ids)).logits.detach()[0, [1, 2, 4]].double().logsumexp(1)
    difference = float((with_z.total - without.total).detach())
    assert difference == pytest.approx(0.01 * float((at_learned**2).sum()), rel=1e-4)
    assert float(with_z.parts["image"][0]) == pytest.approx(float(without.parts["image"][0]), abs=1e-6)


def test_a_models_last_soft_cap_holds_in_training_and_in_sampling():
    backbone = tiny("qwen3")
    plain, capped = unified(backbone), unified(backbone)
    capped.cap = 2.0
    b = batch([1, 2, 3, 4], [1, 1, 1, 0], [0, 0, 0, 0])
    logits = backbone(torch.tensor(b.ids)).logits[0].detach().double()
    logits = 2.0 * torch.tanh(logits / 2.0)
    expected = torch.nn.functional.cross_entropy(logits[:3], torch.tensor(b.targets[0, :3]), reduction="sum")
    assert float(capped(b).parts["text"][0]) == pytest.approx(float(expected), abs=1e-4)
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(capped.head((slice(3, 9),))(hidden, None),
                               2.0 * torch.tanh(plain.head((slice(3, 9),))(hidden, None) / 2.0))


def test_a_batch_without_a_learned_position_runs_and_reaches_every_parameter():
    """Defect 16: a module skipped on one rank hangs the others."""
    model = unified(tiny("qwen3"))
    model(batch([1, 2, 3], [0, 0, 0], [0, 0, 0])).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())


def test_markers_in_the_padding_of_a_published_table_start_as_new_rows_do(tmp_path):
    old = tiny("llama")
    old.resize_token_embeddings(LAYOUT.vocab.rows + 20, mean_resizing=False)
    old.save_pretrained(tmp_path)
    table = build_backbone(PretrainedBackbone(path=str(tmp_path)), LAYOUT.vocab, SharedTable(rows="mean"), {}
                           ).get_input_embeddings().weight
    changed = (table != old.get_input_embeddings().weight).all(1).nonzero().flatten().tolist()
    assert changed == list(range(LAYOUT.vocab.text_size, LAYOUT.vocab.rows))


def test_a_code_is_read_with_its_place_in_its_own_image_also_piece_by_piece():
    model = unified(tiny("qwen3"), places=4)
    table, begin = model.backbone.get_input_embeddings(), LAYOUT.vocab.special["<boi>"]
    end, code = LAYOUT.vocab.special["<eoi>"], LAYOUT.vocab.ranges["visual"].start
    ids = torch.tensor([[7, begin, code, code + 1, code, code, end, 9, begin, code + 3, code, code, code, end]])
    places = torch.tensor([[-1, -1, 0, 1, 2, 3, -1, -1, -1, 0, 1, 2, 3, -1]])
    expected = table(ids) + torch.where(places[..., None] >= 0, torch.nn.functional.embedding(
        places.clamp_min(0), model.image_input.places.weight), 0)
    whole, count = model.image_input(table, ids)
    torch.testing.assert_close(whole, expected)
    assert count.tolist() == [4]
    count = None
    for at in range(ids.shape[1]):
        piece, count = model.image_input(table, ids[:, at:at + 1], count)
        torch.testing.assert_close(piece, expected[:, at:at + 1])
