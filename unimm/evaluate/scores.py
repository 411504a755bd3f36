"""What every judge measures alike: the values, how many items each was measured on, and items to show.

    contexts --draw / answer--> pictures / answers --judged--> Shown --collected--> Scores

Beside the judges, how well text alone is told after each stage: what learning pictures does to it.
"""

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from unimm.checkpoint.read import newest
from unimm.errors import UserError
from unimm.generate.use import answer, draw
from unimm.sample import Part, Text, sample
from unimm.stream.batches import make_batch
from unimm.system import System, load, new_model

Metrics = dict[str, list[dict[str, float]]]
"""Stage -> the lines of its metrics.jsonl."""


class EvaluationError(UserError):
    """Scores that can't be computed as asked."""


@dataclass(frozen=True)
class Bar:
    """A row of the score table: a key of report.json and what it has to reach (None: reported only).

    `chance` is what guessing among the possible answers gives.
    """

    key: str
    group: str
    label: str
    bar: float | None = None
    sense: Literal["at_least", "at_most"] = "at_least"
    chance: float | None = None

    def met(self, value: float) -> bool:
        """Whether the value reaches the bar; a row without a bar is never failed."""
        return self.bar is None or (value >= self.bar if self.sense == "at_least" else value <= self.bar)


@dataclass(frozen=True, eq=False)
class Shown:
    """One scored item. Pictures are uint8 (height, width, 3).

    kind    "single", "colour", "remove", ...: what it was counted under
    text    the prompt, question or instruction
    given   the picture it came with; for a reconstruction the original
    got     the picture that was drawn, or the answer in words
    truth   the expected picture or answer, where there is exactly one
    why     what the judge saw
    """

    kind: str
    text: str
    ok: bool
    got: np.ndarray | str
    given: np.ndarray | None = None
    truth: np.ndarray | str | None = None
    why: str = ""


@dataclass
class Scores:
    """`values` and `counts` are nested alike, `counts` saying how many items a value is the mean of."""

    values: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    pictures: list[Shown] = field(default_factory=list)
    questions: list[Shown] = field(default_factory=list)
    edits: list[Shown] = field(default_factory=list)
    rounds: list[Shown] = field(default_factory=list)
    reconstructions: list[Shown] = field(default_factory=list)
    code_counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, key: str, value: float, count: int) -> None:
        """Set a value and its count under a dotted key."""
        *path, last = key.split(".")
        for tree, leaf in ((self.values, round(value, 4)), (self.counts, count)):
            for name in path:
                tree = tree.setdefault(name, {})
            tree[last] = leaf

    def add_share(self, key: str, items: Many[Shown]) -> None:
        """The share of the items that are right."""
        self.add(key, sum(item.ok for item in items) / len(items), len(items))

    def add_shares(self, key: str, items: Many[Shown]) -> None:
        """The share that is right under `key`.KIND, for every kind among the items."""
        for kind in dict.fromkeys(item.kind for item in items):
            self.add_share(f"{key}.{kind}", [item for item in items if item.kind == kind])


def look_up(tree: dict, key: str):
    """The value under a dotted key, or None."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on `count` items (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def draw_all(system: System, what: str, contexts: Many[Many[Part]], seed: int) -> list[np.ndarray]:
    """One picture after each context; picture n is drawn with seed + n. A bar counts what the decode loop has taken."""
    return draw(system, tqdm(contexts, f"evaluate {what}", mininterval=1), range(seed, seed + len(contexts)))


def answer_all(system: System, what: str, contexts: Many[Many[Part]], seed: int) -> list[str]:
    """The text after each context, without spaces around it."""
    return [text.strip() for text in answer(system, tqdm(contexts, f"evaluate {what}", mininterval=1), seed=seed)]


ROWS = 32


def add_text(scores: Scores, system: System, texts: list[str]) -> None:
    """`text.nats.STAGE`: the mean cross-entropy of a token of these texts, in nats, by the last checkpoint of each
    stage that the run still holds. The count is of tokens."""
    layout = system.layout
    documents = [layout.render(sample(Text(text, learn=True))) for text in texts]
    every = make_batch([[one] for one in documents], max(map(len, documents)), layout.pad_id, layout.vocab.is_code)
    batches = [every[n:n + ROWS] for n in range(0, len(every), ROWS)]
    for name in system.recipe.language:
        if found := newest(system.folder / name):
            # Not the system's own, whose weights a fast body holds in another order.
            model = new_model(system.recipe, layout, system.tokenizer, system.folder, weights=False)
            load(found, model, system.recipe, layout, system.tokenizer)
            model.eval()
            with torch.no_grad():
                sums = np.sum([[float(x) for x in model(batch).parts["text"]] for batch in batches], axis=0)
            scores.add(f"text.nats.{name}", sums[0] / sums[1], int(sums[1]))
