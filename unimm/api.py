"""The commands from Python: `sample`, `chat` and `evaluate`, with the commands' names and defaults.

    from unimm.api import chat, open_run, sample

    run = open_run("runs/demo")
    pictures = sample(run, "a red circle above a blue square", n=8, seed=0)
    answer = chat(run, [{"role": "user", "content": [{"type": "image", "image": pictures[0]},
                                                     {"type": "text", "text": "what color is the circle?"}]}])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimm.evaluate.run import evaluate
from unimm.generate.use import PromptError, draw, reply
from unimm.sample import Image, Pixels, Text
from unimm.stream.messages import parts_of
from unimm.system import System, open_run

__all__ = ["chat", "evaluate", "open_run", "sample"]


def sample(run: System, prompt: str, n: int = 4, seed: int = 0, **sampling: float | str) -> list[np.ndarray]:
    """`n` pictures of a prompt, uint8 (height, width, 3), with seeds `seed`, `seed` + 1, ...

    `sampling` changes the run's own settings, as `unimm sample` does: guidance, temperature, top_k, negative, ...
    Raises PromptError where there is nothing to draw, ConfigError for a setting out of range.
    """
    if not prompt.strip():
        raise PromptError('no prompt; say what to draw, such as "a red circle"')
    if n < 1:
        raise PromptError(f"n is {n}; ask for at least one picture")
    settings = run.recipe.sampling.changed(**sampling)
    return draw(run, [[Text(prompt)]] * n, range(seed, seed + n), settings)


def chat(run: System, messages: Sequence[dict], seed: int = 0) -> dict:
    """The assistant's next message; its image parts hold uint8 arrays, and so may those of `messages`.

    Raises PromptError, RowError and ImageError for a conversation that can't be read.
    """
    if not messages:
        raise PromptError("the conversation is empty; say something")
    spoken = reply(run, parts_of(list(messages), None, Path()), seed=seed)
    content = []
    for part in spoken:
        match part:
            case Text(text=text):
                content.append({"type": "text", "text": text})
            case Image(content=Pixels(array=array)):
                content.append({"type": "image", "image": array})
    return {"role": "assistant", "content": content}
