"""A rule as it is applied: what a step decides and estimates with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .rules import ESTIMATOR, GATE, Decider, Estimator, Setting, SlotSpec, setting_slot


@dataclass(frozen=True, slots=True)
class Rule:
    """What a step decides and estimates with."""

    gate: Decider | None  # None: a schedule decides, which the host tells
    estimator: Estimator
    state_dtype: torch.dtype | None = None  # None: each carried value's own
    joint: bool = False  # whether the streams of a request decide together
    by_rows: bool = False  # whether each row of a batch decides for itself

    def by(self, role: str) -> Decider | Estimator:
        """The gate, where there is one, or the estimator."""
        found = self.gate if role == GATE else self.estimator
        assert found is not None
        return found

    def settings(self) -> dict[str, Setting]:
        """The settings of gate and estimator, by slot."""
        return {
            setting_slot(role, setting.name): setting for role in self._roles() for setting in self.by(role).settings()
        }

    def slots(self) -> tuple[SlotSpec, ...]:
        """What is kept for the gate, then for the estimator."""
        return tuple(spec for role in self._roles() for spec in self.by(role).slots())

    def _roles(self) -> tuple[str, ...]:
        return (ESTIMATOR,) if self.gate is None else (GATE, ESTIMATOR)
