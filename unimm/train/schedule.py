"""The learning rate over a stage, as a factor of its highest value."""

import math

from unimm.config.stages import Schedule


def multiplier(schedule: Schedule, step: int, steps: int) -> float:
    """The factor for update `step` (from 0) of `steps`: rises to 1, holds, falls towards `final`.

    The first update already moves, and so does the last: `final` is what an update after it would get.
    """
    warmup = round(schedule.warmup * steps)
    anneal = round(schedule.anneal * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = step - (steps - anneal)
    if done <= 0:
        return 1.0
    left = 1 - done / anneal if schedule.shape == "linear" else (1 + math.cos(math.pi * done / anneal)) / 2
    return schedule.final + (1 - schedule.final) * left
