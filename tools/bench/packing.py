"""Documents packed into rows: how full, how fast, and what training gains over rows padded to one length.

Lengths as a mixture brings them: text of log-normal length (median 200 tokens, at most 8,192) beside images of 1,026.
Padded training gives every document a row of its own, as long as the longest of its batch, under transformers' own
SDPA attention and loss, with the same backbone, weights and documents; a fill of 0.3 means 70 % padding.
"""

from collections.abc import Iterable

import numpy as np
import torch

from tools.bench.rows import Row, at_most, cpu_seconds, equal, interleaved, main, more
from unimm.config.model import FreshBackbone, SharedTable
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.sample import Sequence
from unimm.stream.batches import Lane, make_batch
from unimm.vocab import Range, Vocab

ROOM, VOCABULARY = 8192, 1024


def mixed_lengths(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    text = rng.lognormal(np.log(200), 1.0, count).astype(int).clip(8, ROOM)
    return np.where(rng.random(count) < 0.5, 1026, text)


def pack(documents: list, lanes: int, room: int = ROOM) -> list[list]:
    """Rows of all documents but the last few, before any lane runs dry."""
    packed, rows = [Lane(documents.__getitem__, n, lanes, room) for n in range(lanes)], []
    while max(lane.next for lane in packed) + 250 * lanes < len(documents):
        rows += [lane.row() for lane in packed]
    return rows


def packing_rows(count: int) -> Iterable[Row]:
    documents = [range(length) for length in mixed_lengths(count).tolist()]
    best = 9e9
    for _ in range(3):
        began = cpu_seconds()
        rows = pack(documents, 16)
        best = min(best, cpu_seconds() - began)
    used = sum(len(document) for row in rows for document in row)
    given_out = sum(map(len, rows))
    yield more(f"packing {count:,} documents into rows of {ROOM:,}: how full", "rows without a gap",
               used / ROOM, len(rows), "rows", 0.999)
    yield at_most(f"packing {count:,} documents", "2 CPU seconds a million", best * 1e6 / given_out, 2.0, "CPU s", 1.0)


def model() -> UnifiedModel:
    torch.manual_seed(0)
    shape = FreshBackbone(family="llama", width=128, layers=4, heads=4, kv_heads=4, mlp=344)
    half = VOCABULARY // 2
    vocab = Vocab(half, {}, {"visual": Range("visual", half, half, 1, True)}, VOCABULARY, VOCABULARY)
    backbone = build_backbone(shape, vocab, SharedTable(rows="normal"), {})
    return UnifiedModel(backbone, vocab, ImageInput())


def documents_of(fill: float, longest: int, rows: int) -> tuple[list[list[Sequence]], float]:
    """Rows of twice `longest`, packed from an endless stream, that would be `fill` full padded; how full exactly.

    Lengths are even around a mean. What is packed first is not quite the mean of the stream, so streams of means near
    by are tried until one is within half a hundredth.
    """
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        twice = 2 * fill * rng.uniform(0.8, 1.2)
        low, high = max(2, int((twice - 1) * longest)), min(longest, int(twice * longest))
        every = [Sequence(rng.integers(0, VOCABULARY, n).astype(np.int32), np.ones(n, bool))
                 for n in rng.integers(low, high, 20 * rows + 40, endpoint=True)]
        lane = Lane(every.__getitem__, 0, 1, 2 * longest)
        packed = [lane.row() for _ in range(rows)]
        lengths = [len(document) for row in packed for document in row]
        if abs(np.mean(lengths) / longest - fill) < 0.005:
            return packed, float(np.mean(lengths) / longest)
    raise RuntimeError(f"no stream is {fill} full")


def training_row(fill: float, wanted: float, toy: bool) -> Row:
    """Useful tokens per CPU second of one forward and backward, packed beside padded."""
    longest = 64 if toy else 512
    rows, filled = documents_of(fill, longest, 3 if toy else 6)
    ours = model()
    packed = make_batch(rows, 2 * longest, 0, ours.vocab.is_code)
    padded = make_batch([[document] for row in rows for document in row], longest, 0, ours.vocab.is_code)
    ids, mask = torch.from_numpy(padded.ids), torch.from_numpy((padded.document > 0).astype(np.int64))
    labels = torch.where(mask > 0, ids, -100)

    def pack_step():
        ours.zero_grad()
        loss = ours(packed).total / np.count_nonzero(packed.learn)
        loss.backward()
        return loss

    theirs = model().backbone
    theirs.set_attn_implementation("sdpa")

    def padded_step():
        theirs.zero_grad()
        loss = theirs(ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        return loss

    equal("packed and padded loss", pack_step(), padded_step(), 1e-4)
    useful = np.count_nonzero(padded.document)
    seconds = interleaved(pack_step, padded_step, 1 if toy else 3)
    return more(f"training on packed rows, fill {filled:.2f} where padded", "transformers on padded rows",
                *(useful / s for s in seconds), "tokens / CPU s", wanted / filled)


def rows(toy: bool = False) -> Iterable[Row]:
    yield from packing_rows(20_000 if toy else 1_000_000)
    for fill in (0.3, 0.6):
        yield training_row(fill, 0.01 if toy else 0.9, toy)


if __name__ == "__main__":
    main(rows)
