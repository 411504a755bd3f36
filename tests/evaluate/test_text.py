"""What a token of text costs after each stage, against a model of transformers' own reading one text at a time."""

from dataclasses import replace

import pytest
import torch
from tiny import TINY

from data import shapes
from unimm.checkpoint.read import newest
from unimm.config.data import Shapes, Use
from unimm.evaluate.scores import Scores, add_text
from unimm.pipeline import train_run
from unimm.sample import Text, sample
from unimm.system import load, new_model, open_run

TALK = replace(TINY.stages["sft"], mix=(Use(data="sentences"),))


def test_nats_are_those_of_each_stages_last_checkpoint_token_by_token(tmp_path):
    recipe = replace(TINY, data={"sentences": Shapes(part="sentences", count=60), "pairs": TINY.data["pairs"]},
                     stages={"tokenizer": TINY.stages["tokenizer"], "text": TALK,
                             "both": replace(TALK, mix=(Use(data="pairs", task="t2i"),), seed=3)})
    train_run(recipe, tmp_path / "run")
    system = open_run(tmp_path / "run")
    texts = shapes.evaluation_sentences(40, 0)
    scores = Scores()
    add_text(scores, system, texts)
    found, counts = scores.values["text"]["nats"], scores.counts["text"]["nats"]
    assert set(found) == {"text", "both"} and found["text"] != found["both"]
    for name in found:
        model = new_model(recipe, system.layout, system.tokenizer, system.folder, weights=False)
        load(newest(system.folder / name), model, recipe, system.layout, system.tokenizer)
        total = tokens = 0
        for text in texts:
            sequence = system.layout.render(sample(Text(text, learn=True)))
            ids = torch.tensor(sequence.ids[None]).long()
            with torch.no_grad():
                hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids))[0, :-1]
                logits = model.head((slice(0, system.layout.vocab.rows),))(hidden, None)
            nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            learned = torch.tensor(sequence.learn[1:])
            total, tokens = total + float(nats[learned].sum()), tokens + int(learned.sum())
        assert found[name] == pytest.approx(total / tokens, abs=1e-3) and counts[name] == tokens
