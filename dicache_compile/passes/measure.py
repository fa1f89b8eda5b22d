"""What the probe's piece learns of one stream, and what stands in for its deep blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..policy import (
    CheckedEstimator,
    Decider,
    EstimateGate,
    Estimator,
    Gate,
    SlotSpec,
)
from .emit import Emitter
from .slots import StreamSlots, Updates


@dataclass(frozen=True, slots=True)
class Policy:
    """What a step decides and estimates with."""

    gate: Decider
    estimator: Estimator
    state_dtype: torch.dtype | None  # None: each stream's own
    joint: bool = False  # whether the streams of a request decide together


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one stream before the decision."""

    error: fx.Node
    gamma: fx.Node
    kept: Updates  # the gate's slots of this stream as it reads them


@dataclass(frozen=True, slots=True)
class Told:
    """The settings of gate and estimator, by the names that these know."""

    gate: Updates
    estimator: Updates


def measure(
    emitter: Emitter, policy: Policy, told: Told, slots: StreamSlots, x: fx.Node, h: fx.Node, anchors: fx.Node
) -> Measured:
    """The error and gamma of one stream, after that many anchors."""
    gate, estimator = policy.gate, policy.estimator
    kept = slots.read(emitter, _per_stream(gate), anchors) | told.gate
    known = slots.read(emitter, _per_stream(estimator), anchors) | told.estimator
    gamma = emitter.trace(estimator.weigh, x, h, anchors, known)
    if isinstance(gate, EstimateGate):
        assert isinstance(estimator, CheckedEstimator)
        error = emitter.trace(gate.measure_estimate, emitter.trace(estimator.check, x, h, gamma, anchors, known))
    else:
        assert isinstance(gate, Gate)
        error = emitter.trace(gate.measure, x, h, kept)
    return Measured(error, gamma, kept)


def stand_in(
    emitter: Emitter,
    policy: Policy,
    told: Updates,
    slots: StreamSlots,
    x: fx.Node,
    gamma: fx.Node,
    anchors: fx.Node,
) -> fx.Node:
    """The estimate of y from state, in float32; `told` are the estimator's settings."""
    estimator = policy.estimator
    state = slots.read(emitter, _per_stream(estimator), anchors) | told
    estimate: fx.Node = emitter.trace(estimator.estimate, x, gamma, anchors, state)
    return estimate


def _per_stream(policy: Decider | Estimator) -> list[SlotSpec]:
    return [spec for spec in policy.slots() if spec.per_stream]
