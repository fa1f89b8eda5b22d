"""Parts of blocks that run on some of their tokens, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class SomeTokens:
    """A function of tokens, [B, T, C] to [B, T, C]: on steps that are not `deep` it runs on the best `share` of them.

    The best are those of the largest change since they were last run, over all changes, plus their age.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], share: float, age_weight: float, period: float) -> None:
        self.run, self.share, self.age_weight, self.period = run, share, age_weight, period
        self.deep = True
        self.ran: list[int] = []  # how many tokens, on each step
        self.result = self.given = self.age = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        if self.deep:
            self.given, self.result, self.age = x.clone(), self.run(x), torch.zeros(x.shape[:2])
            self.ran.append(x.shape[1])
            return self.result.clone()
        count = int(self.share * x.shape[1])
        change = (x - self.given).float().pow(2).sum(-1).sqrt()
        score = change / change.pow(2).sum(-1, keepdim=True).sqrt() + self.age_weight * self.age / self.period
        self.age = self.age + 1
        for row, scores in enumerate(score):
            picked = scores.argsort(descending=True)[:count]
            self.result[row, picked] = self.run(x[row : row + 1, picked])[0]
            self.given[row, picked] = x[row, picked]
            self.age[row, picked] = 0
        self.ran.append(count)
        return self.result.clone()
