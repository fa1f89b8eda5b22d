"""An estimator whose weights were fitted for each step: the idea of L2P (arXiv 2604.26365)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import combination
from ..rules import Estimator, Seen, Setting, SlotSpec
from .linear import MOST

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, repr=False)
class LearnedTable(Estimator):
    """y = x + sum_k w_k R_k + u_1 (x - X_1) + u_2 (X_1 - X_2), with weights w and u of their own for each step.

    R_k is the residual of the k-th newest deep step, and X_k the x of it. The weights hold for one schedule, that of
    `deep_steps`, which is checked: on another one they mean nothing. `tune` fits them. Another table of as many numbers
    compiles nothing.

    `residuals` and `inputs` have a row for each step of a generation, with one weight for each R and each difference of
    x; a step beyond the last takes its row. Where there are fewer anchors than weights, these have to be 0.

    `of_channel` says of which cluster each channel of the last dimension is. Then a row has the weights of the first
    cluster, those of the second, and so on. () has one for all channels.

    Raises ValueError for rows of different lengths, none, more than 4 and 2 weights, a number that is not finite, and
    a cluster without weights.
    """

    deep_steps: tuple[int, ...]
    residuals: Table
    inputs: Table = ()
    of_channel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in self.of_channel):
            raise ValueError(f"of_channel: expected a cluster for each channel, from 0 on, got {self.of_channel!r}")
        _check("residuals", self.residuals, MOST, self.clusters)
        if self.inputs:
            _check("inputs", self.inputs, 2, self.clusters)
            if len(self.inputs) != len(self.residuals):
                raise ValueError(f"inputs: expected {len(self.residuals)} rows as residuals, got {len(self.inputs)}")

    def __repr__(self) -> str:
        clusters = f", {self.clusters} clusters" if self.of_channel else ""
        return f"LearnedTable({len(self.residuals)} steps, {self._reach} anchors{clusters})"

    @property
    def probes(self) -> bool:
        return False

    @property
    def num_steps(self) -> int:
        """Of the generations that it was fitted for."""
        return len(self.residuals)

    @property
    def clusters(self) -> int:
        """Of channels that have weights of their own."""
        return max(self.of_channel, default=0) + 1

    @property
    def _reach(self) -> int:
        return len(self.residuals[0]) // self.clusters

    @property
    def _back(self) -> int:
        return len(self.inputs[0]) // self.clusters if self.inputs else 0

    def same_graph(self, other: object) -> bool:
        """Whether another table compiles to the same graph: at run time one can take another's place."""
        alike = [(one.name, one.shape) for one in self.settings()]
        return isinstance(other, LearnedTable) and alike == [(one.name, one.shape) for one in other.settings()]

    def check_schedule(self, deep_steps: tuple[int, ...] | None) -> None:
        """Raises ValueError where these are not the steps that the table was fitted for."""
        if deep_steps != self.deep_steps:
            expected = f"schedule=Schedule.steps({', '.join(map(str, self.deep_steps))})"
            raise ValueError(f"estimator={self!r} was fitted for {expected}, got deep steps {deep_steps}")

    def slots(self) -> tuple[SlotSpec, ...]:
        own = (SlotSpec("x", history=self._back, measured=True),) if self._back else ()
        return (SlotSpec("r", history=self._reach), *own)

    def settings(self) -> tuple[Setting, ...]:
        own = (Setting("inputs", sum(self.inputs, ())),) if self._back else ()
        if self.of_channel:
            own = (*own, Setting("of_channel", tuple(map(float, self.of_channel))))
        return (Setting("residuals", sum(self.residuals, ())), *own)

    def estimate(self, seen: Seen) -> Tensor:
        anchors = [seen.state[name] for name in self.slots()[0].reads]
        weights = self._row(seen, "residuals", self._reach)
        if self._back:
            places = [seen.x.float(), *(seen.state[name].float() for name in self.slots()[1].reads)]
            anchors += [places[age] - places[age + 1] for age in range(self._back)]
            weights += self._row(seen, "inputs", self._back)
        return combination(seen.x, anchors, weights)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        new = {"r": seen.y.float() - seen.x.float()}
        return {**new, "x": seen.x} if self._back else new

    def _row(self, seen: Seen, name: str, width: int) -> list[float | Tensor]:
        table = seen.state[name].reshape(len(self.residuals), self.clusters * width)
        row = table.index_select(0, seen.index.clamp(max=len(self.residuals) - 1).reshape(1)).reshape(-1)
        if not self.of_channel:
            return [row[place] for place in range(width)]
        size = seen.x.shape[-1]
        if isinstance(size, int) and size != len(self.of_channel):
            raise ValueError(f"expected a model of {len(self.of_channel)} channels, got one of {size}")
        # A sum is computed once; an index, or a choice, Inductor would compute again for every element of the estimate.
        place = seen.state["of_channel"]
        has = torch.stack([place == cluster for cluster in range(self.clusters)])
        weights = row.reshape(self.clusters, width, 1)
        of_channel = torch.where(has[:, None], weights, torch.zeros_like(weights)).sum(0)
        return [of_channel[age] for age in range(width)]


def _check(name: str, table: Table, most: int, clusters: int) -> None:
    widths = {len(row) for row in table}
    if len(widths) != 1 or min(widths) % clusters or not 1 <= min(widths) // clusters <= most:
        each = f" for each of {clusters} clusters" if clusters > 1 else ""
        expected = f"expected rows of 1 to {most} weights{each}, all of one length"
        raise ValueError(f"{name}: {expected}, got {sorted(widths)}")
    if not all(map(math.isfinite, sum(table, ()))):
        raise ValueError(f"{name}: expected finite weights")
