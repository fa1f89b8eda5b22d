"""What a pipeline's scheduler knows of a run: how often the model is called in it, and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def calls_of(pipe: Any, steps: int) -> int:
    """How often a loop of that many steps calls its model: second-order samplers do so twice a step but for the last.

    Of a part of a scheduler's steps, as in image to image, it is the last ones.
    """
    scheduler = getattr(pipe, "scheduler", None)
    order, whole = getattr(scheduler, "order", 1), getattr(scheduler, "num_inference_steps", None)
    timesteps = getattr(scheduler, "timesteps", None)
    if order == 1 or whole is None or timesteps is None:
        return steps
    return int(len(timesteps) - (whole - steps) * order)


def place_of(pipe: Any, calls: int | None) -> Callable[[], int | None]:
    """Tells the index of the next step in a run that begins now and calls its model so often; None if nobody knows.

    Not every scheduler counts, and one that has made no step yet does not know where it stands.
    """
    timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    first = max(len(timesteps) - calls, 0) if timesteps is not None and calls is not None else 0

    def place() -> int | None:
        step = getattr(getattr(pipe, "scheduler", None), "step_index", None)
        if not isinstance(step, int) or step < first:
            return None
        return step - first

    return place
