"""The estimator of HyCa (arXiv 2510.04188): each channel has a solver of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..rules import Seen, Setting
from .timed import Timed, Times
from .weights import Number, Weights, three

# By solver: its share of the slope and its bend, in the terms of `weights.three`.
_Form = Callable[[Tensor, "list[Tensor]"], "tuple[Number, Number]"]
SOLVERS: Mapping[str, _Form] = MappingProxyType(
    {
        "taylor": lambda elapsed, gaps: (1.0, 0.0),
        "ab2": lambda elapsed, gaps: (1.0, elapsed / (2 * gaps[0])),
        "bdf2": lambda elapsed, gaps: (1 / 3, 0.0),
        "am": lambda elapsed, gaps: (1.0, 7 / 24 * elapsed / gaps[0]),
        "rk2": lambda elapsed, gaps: (1.0, -gaps[1] / (gaps[0] + gaps[1])),
    }
)


@dataclass(frozen=True, slots=True)
class HyCa(Timed):
    """y = x + R1 + e g ((1 + c) D - c D'), where g and c are those of the channel's solver.

    D is the slope between the last two anchors, D' the one before, e the time since the newest anchor. One anchor gap
    ahead these are the paper's weights of R1, R2, R3: "taylor" (2, -1, 0), "ab2" (5/2, -2, 1/2), "bdf2" (4/3, -1/3, 0),
    "am" (55/24, -19/12, 7/24), "rk2" (3/2, 0, -1/2). The paper gives them for one step ahead; how they go on further is
    our reading. All but "bdf2" are exact on residuals that change linearly.

    `solvers` are names of these, and `of_channel` says which of them, by its place, each channel of the last dimension
    has: `calibrate` finds it.

    Raises ValueError for an unknown solver, or a channel without one.
    """

    solvers: tuple[str, ...]
    of_channel: tuple[int, ...]
    times: Times = "steps"

    def __post_init__(self) -> None:
        self.check_times()
        if unknown := [name for name in self.solvers if name not in SOLVERS]:
            raise ValueError(f"solvers: expected some of {', '.join(SOLVERS)}, got {', '.join(map(repr, unknown))}")
        if not self.solvers or not self.of_channel:
            raise ValueError("expected a solver at least, and a place of one for each channel, got none")
        if wrong := [place for place in self.of_channel if not 0 <= place < len(self.solvers)]:
            raise ValueError(f"of_channel: expected places from 0 to {len(self.solvers) - 1}, got {wrong[0]!r}")

    def reach(self) -> int:
        return 3

    def settings(self) -> tuple[Setting, ...]:
        return (*Timed.settings(self), Setting("of_channel", tuple(map(float, self.of_channel))))

    def weights(self, seen: Seen) -> Weights:
        size = seen.x.shape[-1]
        if isinstance(size, int) and size != len(self.of_channel):
            raise ValueError(f"expected a model of {len(self.of_channel)} channels, got one of {size}")
        place = seen.state["of_channel"]
        return [self._by_channel(weights, place) for weights in Timed.weights(self, seen)]

    def at(self, elapsed: Tensor, gaps: list[Tensor]) -> Weights:
        """As in `Timed`; each weight that is not a number has one place for each solver."""
        if not gaps:
            return [1.0]
        if len(gaps) == 1:
            bends = [(SOLVERS[name](elapsed, [gaps[0], gaps[0]])[0]) for name in self.solvers]
            step = [elapsed * share / gaps[0] for share in bends]
            return [torch.stack([1 + one for one in step]), torch.stack([-one for one in step])]
        found = [three(elapsed, gaps, *SOLVERS[name](elapsed, gaps)) for name in self.solvers]
        return [torch.stack([_tensor(one[age], elapsed) for one in found]) for age in range(3)]

    def _by_channel(self, weight: Number, place: Tensor) -> Number:
        """Of one place for each solver to one for each channel.

        By comparisons: on a CPU Inductor would look an index up again for every element.
        """
        if isinstance(weight, float):
            return weight
        found: Tensor = weight[0]
        for solver in range(1, len(self.solvers)):
            found = torch.where(place == solver, weight[solver], found)
        return found


def _tensor(number: Number, like: Tensor) -> Tensor:
    return torch.full_like(like, number) if isinstance(number, float) else number
