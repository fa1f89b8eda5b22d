"""Rows of a batch that decide for themselves, in plain PyTorch: each is run alone, as a batch of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.oracles.plain_oracle import PlainDiCache


@dataclass
class PlainRows:
    """A batch of one model; call it once for each step, with which rows begin a generation."""

    make: Callable[[], PlainDiCache]
    done: list[list[PlainDiCache]] = field(default_factory=list)  # the generations of each row, the newest last

    def __call__(self, begins: Sequence[bool], *args: Any) -> Tensor:
        self.done = self.done or [[] for _ in begins]
        results = []
        for row, begin in enumerate(begins):
            if begin:
                self.done[row].append(self.make())
            results.append(self.done[row][-1](*(of_row(one, row) for one in args)))
        return torch.cat(results)

    def deep(self, row: int) -> list[bool]:
        """Whether a row needed the deep blocks, step by step."""
        return [deep for generation in self.done[row] for deep in generation.deep]


def of_row(argument: Any, row: int) -> Any:
    """A row's part of a model's argument, as a batch of one."""
    if isinstance(argument, Tensor):
        return argument[row : row + 1]
    return [of_row(one, row) for one in argument]
