"""Writes what comes after the decision: the deep blocks, what stands in for them, and the epilogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from ..plan import Region
from ..program import Kind, Value
from ..rules import ANCHOR_TIME
from . import strides
from .emit import Emitter, memory_of, write_back
from .parts import Parts, tensor
from .slots import Updates, check_names


def write_deep(parts: Parts, emitter: Emitter) -> None:
    """D: deep blocks and new anchor."""
    emitter.copy(parts.partition.nodes(Region.DEEP))
    estimator, anchors = parts.rule.estimator, emitter.state("anchors")
    specs = estimator.slots()
    updates: Updates = {"anchors": emitter.trace(_one_more, anchors)}
    for place, stream in enumerate(parts.partition.carried):
        y: Any = emitter.read(stream.y)
        seen = replace(parts.later(emitter, place), y=y)
        new = emitter.trace(estimator.anchor, seen)
        own = [spec.name for spec in specs if spec.name != ANCHOR_TIME]
        check_names(estimator.anchor, new, own, all_of_them=True)
        for spec in specs:
            value: Any = seen.time if spec.name == ANCHOR_TIME else new[spec.name]
            updates |= parts.slots_of(place).write(emitter, spec, value, anchors)
    write_back(emitter, updates)


def write_stand_in(parts: Parts, emitter: Emitter) -> None:
    """R: the estimates of what the deep blocks would give."""
    for place, stream in enumerate(parts.partition.carried):
        y = emitter.trace(parts.rule.estimator.estimate, parts.later(emitter, place))
        recorded = tensor(stream.y)
        if memory_of(y).op == "placeholder":  # the model's caller must not get hold of the state
            y = emitter.graph.call_method("clone", (y,))
        y = emitter.graph.call_method("to", (y, recorded.dtype))
        if (order := strides.order_of(recorded, tensor(stream.x))) is not None:
            y = emitter.trace(strides.laid_out, y, order)
        emitter.replace(stream.y, y)


def write_epilogue(parts: Parts, emitter: Emitter) -> tuple[Value, ...]:
    """E: what comes after the trunk. The values that the model's graph returns."""
    emitter.copy(parts.partition.nodes(Region.EPILOGUE))
    returned = next(iter(reversed(parts.partition.graph_module.graph.nodes))).args[0]
    assert isinstance(returned, (tuple, list))
    outputs = tuple(Value(Kind.OUTPUT, str(place)) for place in range(len(returned)))
    for value, node in zip(outputs, returned, strict=True):
        emitter.offer(value, emitter.read(node) if isinstance(node, fx.Node) else node)
    return outputs


# Traced into the graph:


def _one_more(anchors: Tensor) -> Tensor:
    return anchors + 1
