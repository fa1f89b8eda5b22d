"""Has any sum of the last anchors be tried on the probe, whose result is known, before it is used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import combination, relative_l1
from ..rules import CheckedEstimator, Seen, Setting, SlotSpec
from .linear import Linear


@dataclass(frozen=True, slots=True)
class Checked(CheckedEstimator):
    """Estimates as another estimator does, and says how far off the same weights are on the probe.

    So `error="estimate"` and `gates.DraftError` go with the series of the published caches, as in SpeCa
    (arXiv 2509.11628). The anchors of p = h - x are kept besides those of the residual. The error is
    mean|sum_k w_k P_k - p| / mean|p|.

    Raises TypeError for an estimator that is no sum of its last anchors, ValueError for one that adds them to h.
    """

    estimator: Linear

    def __post_init__(self) -> None:
        own = self.estimator
        plain = isinstance(own, Linear) and type(own).estimate is Linear.estimate
        if not plain or tuple(own.terms()) != own.slots()[0].reads:
            raise TypeError(f"estimator: expected a sum of its last anchors, as Taylor() is, got {own!r}")
        if self.estimator.base != "x":
            raise ValueError(f"estimator: expected one with base='x', got {self.estimator!r}")

    def slots(self) -> tuple[SlotSpec, ...]:
        residuals, *others = self.estimator.slots()
        return residuals, SlotSpec("p", history=residuals.history, measured=True), *others

    def settings(self) -> tuple[Setting, ...]:
        return self.estimator.settings()

    def estimate(self, seen: Seen) -> Tensor:
        return self.estimator.estimate(seen)

    def check(self, seen: Seen) -> Tensor:
        p = _probe(seen)
        anchors = [seen.state[f"p{name.removeprefix('r')}"] for name in self.estimator.terms()]
        return relative_l1(combination(torch.zeros_like(p), anchors, self.estimator.weights(seen)), p)

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {**self.estimator.anchor(seen), "p": _probe(seen)}


def _probe(seen: Seen) -> Tensor:
    return seen.h.float() - seen.x.float()
