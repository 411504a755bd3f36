"""How well text alone is told, after each stage of the language model: what learning pictures does to it."""

import numpy as np
import torch

from unimm.checkpoint.read import newest
from unimm.evaluate.scores import Scores
from unimm.sample import Text, sample
from unimm.stream.batches import make_batch
from unimm.system import System, load_stage, new_model

ROWS = 32


def add_text(scores: Scores, system: System, texts: list[str]) -> None:
    """`text.nats.STAGE`: the mean cross-entropy of a token of these texts, in nats, by the last checkpoint of each
    stage that the run still holds. The count is of tokens."""
    layout = system.layout
    documents = [layout.render(sample(Text(text, learn=True))) for text in texts]
    length = max(map(len, documents))
    batches = [make_batch([[one] for one in documents[n:n + ROWS]], length, layout.pad_id, layout.vocab.is_code)
               for n in range(0, len(documents), ROWS)]
    for name, stage in system.recipe.language.items():
        if found := newest(system.folder / name):
            # Not the system's own, whose weights a fast body holds in another order.
            model = new_model(system.recipe, layout, system.tokenizer, shapes=system.folder)
            load_stage(found, model, stage)
            model.eval()
            with torch.no_grad():
                sums = np.sum([[float(x) for x in model(batch).parts["text"]] for batch in batches], axis=0)
            scores.add(f"text.nats.{name}", sums[0] / sums[1], int(sums[1]))
