"""The estimator of ToCa (arXiv 2410.05317): some tokens are computed, the last results stand in for the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..rules import Seen, SlotSpec, TokenEstimator
from .reuse import Reuse


@dataclass(frozen=True, slots=True)
class Tokens(TokenEstimator):
    """A reused step computes the int(share T) tokens of the highest score, and takes the last results of the others.

    The score of token i is s_i / ||s|| + age_weight age_i / period, with the norm over all tokens of a sample. age_i
    counts the reused steps since the token was computed. By score="change", s_i is how far what the token gives to the
    site's first linear has moved since then, in the L2 norm; by "norm" it is that value's own norm. With `grid`, the
    tokens' rows and columns, the best token of each cell of 2 x 2 then has (1 + bonus) times its score (the paper's
    s4). An attention among the sites is reused as a whole, as in the paper.

    Keeps a tensor for each site, and two by "change". The paper's own score of attention maps is not here: attention
    kernels do not give any.

    Raises ValueError for a value out of range.
    """

    share: float
    age_weight: float = 0.25
    period: int = 3
    score: Literal["change", "norm"] = "change"
    grid: tuple[int, int] | None = None
    bonus: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: expected a number from 0 to 1, got {self.share!r}")
        if not (self.age_weight >= 0 and math.isfinite(self.age_weight)):
            raise ValueError(f"age_weight: expected a number from 0 on, got {self.age_weight!r}")
        if not self.period > 0:
            raise ValueError(f"period: expected steps above 0, got {self.period!r}")
        if self.score not in ("change", "norm"):
            raise ValueError(f"score: expected 'change' or 'norm', got {self.score!r}")
        if self.grid is not None and (len(self.grid) != 2 or any(n < 2 or n % 2 for n in self.grid)):
            raise ValueError(f"grid: expected an even number of rows and of columns, got {self.grid!r}")

    @property
    def probes(self) -> bool:
        return False

    @property
    def otherwise(self) -> Reuse:
        return Reuse()

    def slots(self) -> tuple[SlotSpec, ...]:
        kept = (SlotSpec("result"), SlotSpec("age", "tokens"))
        return (*kept, SlotSpec("given", measured=True)) if self.score == "change" else kept

    def pick(self, seen: Seen) -> Tensor:
        given, age = seen.x.float(), seen.state["age"].squeeze(-1)
        if self.score == "change":
            given = given - seen.state["given"].float()
        score = torch.nn.functional.normalize(given.norm(dim=-1), dim=-1) + self.age_weight * age / self.period
        share = Fraction(repr(self.share))  # of the number as it is written: 0.29 of 100 are 29
        count = score.shape[-1] * share.numerator // share.denominator
        return torch.topk(self._with_bonus(score), count, dim=-1).indices

    def _with_bonus(self, score: Tensor) -> Tensor:
        if self.grid is None:
            return score
        rows, columns = self.grid
        if isinstance(score.shape[-1], int) and score.shape[-1] != rows * columns:
            raise ValueError(f"grid={self.grid!r} is of {rows * columns} tokens, and the site has {score.shape[-1]}")
        # [..., rows / 2, 2, columns / 2, 2] to one row of 4 for each cell, and back.
        cells = torch.unflatten(score, -1, (rows // 2, 2, columns // 2, 2)).transpose(-3, -2)
        flat = cells.flatten(-2)
        place = flat.argmax(-1, keepdim=True)
        raised = flat.scatter_add(-1, place, self.bonus * flat.gather(-1, place))
        raised = torch.unflatten(raised, -1, (2, 2)).transpose(-3, -2)
        return raised.flatten(-4)

    def renew(self, seen: Seen) -> dict[str, Tensor]:
        at = seen.places.unsqueeze(-1)
        everywhere = at.expand_as(seen.y)
        age = seen.state["age"] + 1
        new = {
            "result": seen.state["result"].float().scatter(-2, everywhere, seen.y.float()),
            "age": age.scatter(-2, at, torch.zeros_like(at, dtype=age.dtype)),
        }
        if self.score == "change":
            given = torch.take_along_dim(seen.x.float(), at, dim=-2)
            new["given"] = seen.state["given"].float().scatter(-2, everywhere, given)
        return new

    def estimate(self, seen: Seen) -> Tensor:
        return seen.state["result"].float()

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        new = {"result": seen.y.float(), "age": torch.zeros_like(seen.state["age"])}
        return {**new, "given": seen.x.float()} if self.score == "change" else new
