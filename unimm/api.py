"""A trained run from Python, with the commands' names and defaults.

    from unimm.api import Model

    model = Model.load("runs/demo")
    pictures = model.draw("a red circle above a blue square", n=8, seed=0)
    answer = model.ask(pictures[0], "what color is the circle?")

Pictures go in as paths, Pillow images or uint8 arrays (height, width, 3), and come out as such arrays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimm.evaluate.run import evaluate
from unimm.generate.use import PromptError, answer, asked, draw, go_on
from unimm.serve.documents import document, parts_in
from unimm.serve.files import Order, codes_of
from unimm.stream.messages import parts_of, pixels_of
from unimm.system import System, open_run
from unimm.train import ranks

Picture = Any
"""A path, a Pillow image or a uint8 array (height, width, 3)."""


class Model:
    """What a run has learned, ready to draw, answer, edit and talk; `system` holds its parts.

    `sampling` changes the run's own settings, as the commands' flags do: guidance, temperature, top_k, negative,
    text_temperature, ... Everything raises a UserError for what can't be used, in one line that says why.
    """

    def __init__(self, system: System):
        self.system = system
        self._changed = system.recipe.sampling.changed

    @classmethod
    def load(cls, path: str | Path) -> "Model":
        """The newest whole checkpoint of a run's latest stage, on a GPU where there is one."""
        return cls(open_run(path, ranks.device()))

    def draw(self, prompt: str, n: int = 4, seed: int = 0, size: tuple[int, int] | str | None = None,
             **sampling: float | str) -> list[np.ndarray]:
        """`n` pictures of a prompt, with seeds `seed`, `seed` + 1, ...; `size` is (height, width) or such as "16:9"."""
        return self._pictures([], Order(prompt=prompt, n=n, seed=seed, size=size), sampling)

    def edit(self, image: Picture, instruction: str, n: int = 4, seed: int = 0,
             size: tuple[int, int] | str | None = None, **sampling: float | str) -> list[np.ndarray]:
        """`n` pictures of what an instruction makes of one; without a `size`, of the offered one nearest to its own."""
        order = Order(prompt=instruction, n=n, seed=seed, size=size)
        return self._pictures([pixels_of(image, Path())], order, sampling)

    def _pictures(self, shown: list[np.ndarray], order: Order, sampling: dict) -> list[np.ndarray]:
        settings, size = self._changed(**sampling), codes_of(self.system.recipe.layout, order.size, shown)
        parts, seeds = asked(shown, order.prompt), range(order.seed, order.seed + order.n)
        return draw(self.system, [parts] * order.n, seeds, settings, size)

    def ask(self, image: Picture | list[Picture], question: str, seed: int = 0, **sampling: float | str) -> str:
        """The answer to a question about a picture, or about several."""
        shown = [pixels_of(one, Path()) for one in (image if isinstance(image, list) else [image])]
        if not question.strip():
            raise PromptError("nothing is said about the picture; ask something")
        return answer(self.system, [asked(shown, question)], self._changed(**sampling), seed)[0].strip()

    def chat(self, messages: Sequence[dict], seed: int = 0, **sampling: float | str) -> dict:
        """The assistant's next message; images in messages may be anything that is a picture."""
        spoken = go_on(self.system, parts_of(list(messages), None, Path()), self._changed(**sampling), seed, 1, False)
        return document(spoken)["messages"][0] if spoken else {"role": "assistant", "content": []}

    def go_on(self, given: dict | Path, images: int = 4, seed: int = 0, **sampling: float | str) -> dict:
        """A document or a chat with what the model writes behind it, at most `images` pictures; see
        `unimm.serve.documents`."""
        parts = parts_in(given)
        return document([*parts, *go_on(self.system, parts, self._changed(**sampling), seed, images)])

    def evaluate(self, count: int = 200, seed: int = 0) -> dict:
        """What `unimm eval` writes as report.json."""
        return evaluate(self.system, count, seed)
