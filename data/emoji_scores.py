"""The scores of a system on emoji: does it draw the one that is named, and name the one it is shown?

All of them were trained on; what is measured is whether the names and the pictures were learned.
"""

from random import Random

import numpy as np

from data import emoji
from unimm.evaluate.scores import Bar, Scores, Shown, answer_all, draw_all
from unimm.evaluate.tokenizer_scores import Subject, add_tokenizer
from unimm.sample import Image, Pixels, Text
from unimm.system import System

BARS = (Bar("emoji.nearest", "Draws the emoji that is named", "pictures nearest to the named emoji", 0.70),
        Bar("emoji.caption", "Names the emoji it is shown", "names that match exactly", 0.70),
        Bar("tokenizer.nearest", "Gives a picture back", "reconstructions nearest to their original"),
        Bar("seconds.total", "In little time", "seconds in all", 1200, "at_most"))


def score(system: System, subject: Subject, count: int, seed: int) -> Scores:
    """Scores on `count` emoji (all, where there are fewer), chosen by `seed`. Raises FontMissing."""
    scores = Scores()
    known = emoji.emoji(system.recipe.image_tokenizer.image)
    chosen = Random(f"emoji {seed}").sample(known, min(count, len(known)))
    names, pictures = [name for name, _ in chosen], [picture for _, picture in chosen]

    def judge(got: list[np.ndarray]) -> list[tuple[bool, str]]:
        near = [known[i][0] for i in emoji.nearest(np.stack(got))]
        return [(found == name, f"nearest to {found}") for name, found in zip(names, near)]

    add_tokenizer(scores, subject, "nearest", pictures, judge)
    if system.model is None:
        return scores
    drawn = draw_all(system, "pictures", [(Text(name),) for name in names], seed)
    scores.pictures = [Shown("emoji", name, ok, got, truth=picture, why=why)
                       for (name, picture), got, (ok, why) in zip(chosen, drawn, judge(drawn))]
    said = answer_all(system, "names", [(Image(Pixels(picture)),) for picture in pictures], seed)
    scores.questions = [Shown("emoji", "", text == name, text, picture, name)
                        for (name, picture), text in zip(chosen, said)]
    scores.add_share("emoji.nearest", scores.pictures)
    scores.add_share("emoji.caption", scores.questions)
    return scores
