"""What the probe's piece learns of one stream, and what stands in for its deep blocks: plain, or by fused operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..kernels import operators  # noqa: F401  the operators are there once this is imported
from ..policy import (
    CheckedEstimator,
    Decider,
    EstimateGate,
    Estimator,
    Gate,
    LinearEstimator,
    SlotSpec,
    State,
    SummedGate,
)
from . import values
from .emit import Emitter
from .slots import StreamSlots, Updates


@dataclass(frozen=True, slots=True)
class Policy:
    """What a step decides and estimates with."""

    gate: Decider
    estimator: Estimator
    state_dtype: torch.dtype | None  # None: each stream's own
    joint: bool = False  # whether the streams of a request decide together
    fused: bool = False  # statistics and estimate as one operator each; the gate and the estimator have the forms


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one stream before the decision."""

    error: fx.Node
    gamma: fx.Node
    kept: Updates  # the gate's slots of this stream as it reads them
    written: frozenset[str]  # those of its specs that are written already


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
    if policy.fused:
        return _measure_fused(emitter, policy, told, slots, x, h, anchors)
    kept = slots.read(emitter, _per_stream(gate), anchors) | told.gate
    known = slots.read(emitter, _per_stream(estimator), anchors) | told.estimator
    gamma = emitter.trace(estimator.weigh, x, h, anchors, known)
    if isinstance(gate, EstimateGate):
        assert isinstance(estimator, CheckedEstimator)
        error = emitter.trace(gate.measure_estimate, emitter.trace(estimator.check, x, h, gamma, anchors, known))
    else:
        assert isinstance(gate, Gate)
        error = emitter.trace(gate.measure, x, h, kept)
    return Measured(error, gamma, kept, frozenset())


def stand_in(
    emitter: Emitter,
    policy: Policy,
    told: Updates,
    slots: StreamSlots,
    x: fx.Node,
    gamma: fx.Node,
    anchors: fx.Node,
    dtype: Any,
) -> fx.Node:
    """The estimate of y from state, in `dtype` or in float32; `told` are the estimator's settings."""
    estimator = policy.estimator
    if not policy.fused:
        state = slots.read(emitter, _per_stream(estimator), anchors) | told
        estimate: fx.Node = emitter.trace(estimator.estimate, x, gamma, anchors, state)
        return estimate
    ring, scales = slots.stored(emitter, _named(estimator, "r"))
    weights = emitter.trace(_by_place, estimator, gamma, anchors)
    return emitter.graph.call_function(torch.ops.dicache.combine.default, (x, ring, scales, weights, dtype))


def _measure_fused(
    emitter: Emitter, policy: Policy, told: Told, slots: StreamSlots, x: fx.Node, h: fx.Node, anchors: fx.Node
) -> Measured:
    gate, estimator = policy.gate, policy.estimator
    assert isinstance(gate, SummedGate)
    assert isinstance(estimator, LinearEstimator)
    names = {spec.name for spec in _per_stream(gate)} & {"h_prev", "x_prev"}
    if len({recorded.dtype for node in (x, h) if (recorded := values.tensor(node)) is not None}) > 1:
        # As under autocast; the operator takes one dtype.
        x, h = (emitter.graph.call_method("float", (node,)) for node in (x, h))
    arguments: list[Any] = [h, x]
    for name in ("h_prev", "x_prev"):
        if name in names:
            stored, scales = slots.stored(emitter, _named(gate, name))
            arguments += [*stored, *scales] if scales else [*stored, None]
        else:
            arguments += [None, None]
    arguments += [*slots.stored(emitter, _named(estimator, "p")), anchors]
    sums = emitter.graph.call_function(torch.ops.dicache.statistics.default, tuple(arguments))
    scalars = slots.read(emitter, [spec for spec in _per_stream(estimator) if spec.scalar], anchors) | told.estimator
    error = emitter.trace(gate.error_of, sums)
    gamma = emitter.trace(_gamma_of, estimator, sums, h, anchors, scalars)
    kept = slots.read(emitter, [spec for spec in _per_stream(gate) if spec.name not in names], anchors) | told.gate
    return Measured(error, gamma, kept, frozenset(names))


def _per_stream(policy: Decider | Estimator) -> list[SlotSpec]:
    return [spec for spec in policy.slots() if spec.per_stream]


def _named(policy: Decider | Estimator, name: str) -> SlotSpec:
    return next(spec for spec in policy.slots() if spec.name == name)


# Traced into the graph:


def _gamma_of(estimator: LinearEstimator, sums: Tensor, h: Tensor, anchors: Tensor, state: State) -> Tensor:
    return estimator.gamma_of(sums, h.numel(), anchors, state)


def _by_place(estimator: LinearEstimator, gamma: Tensor, anchors: Tensor) -> Tensor:
    """The weights of a ring's two places."""
    newest, older = estimator.weights(gamma, anchors)
    first_is_newest = (anchors - 1) % 2 == 0
    places = [torch.where(first_is_newest, *pair) for pair in ((newest, older), (older, newest))]
    return torch.stack(places)
