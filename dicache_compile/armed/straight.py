"""The way from a call's arguments straight to its compiled step, and from what that gives to the call's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..calls.overheard import Graph
from .arguments import CONSTANTS, Arguments, OtherArgumentError, read
from .modes import Modes

MISS: Any = object()  # for a call of another form


class NoWayError(Exception):
    """There is none; says why."""


@dataclass(frozen=True, slots=True)
class _Result:
    """How a call's result is made of what its graph gives."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]  # a tensor's place, or what is the same for every call
    outputs: frozenset[int]  # which leaves are places among the graph's outputs
    arguments: frozenset[int]  # which are places among the tensors of the arguments

    def made(self, outputs: Sequence[Any], tensors: Sequence[Tensor]) -> Any:
        leaves = list(self.leaves)
        for leaf in self.outputs:
            leaves[leaf] = outputs[leaves[leaf]]
        for leaf in self.arguments:
            leaves[leaf] = tensors[leaves[leaf]]
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True, slots=True, eq=False)
class Straight:
    """One, for calls of one form."""

    modes: Modes
    arguments: Arguments
    step: Any  # a `CompiledStep`
    inputs: list[Any]  # of its graph; those that a call brings along are None
    brought: tuple[tuple[int, int], ...]  # (place among the inputs, place among the tensors of the arguments)
    result: _Result

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call; MISS where it has to go the long way."""
        tensors = self.arguments.tensors(args, kwargs)
        if tensors is None or not self.modes.hold():
            return MISS
        inputs = self.inputs.copy()
        for place, tensor in self.brought:
            inputs[place] = tensors[tensor]
        return self.result.made(self.step.run(inputs, self), tensors)


def straight(graphs: Sequence[Graph], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Straight:
    """The way of a call that ran these graphs, and of those like it. Raises NoWayError where there is none."""
    if len(graphs) != 1:
        raise NoWayError(f"a call runs {len(graphs)} graphs" if graphs else "a call runs no graph")
    graph = graphs[0]
    if graph.step is None:
        raise NoWayError("its graph runs uncached")
    if graph.step.stays is None:
        raise NoWayError("a call does more than run one graph: it changes something of the model, say")
    try:
        arguments, tensors = read(args, kwargs)
    except OtherArgumentError as error:
        raise NoWayError(f"{error} is passed") from None
    places = {id(tensor): place for place, tensor in reversed(list(enumerate(tensors)))}
    inputs, brought = list(graph.inputs), []
    for place, value in enumerate(inputs):
        found = places.get(id(value))
        if place in graph.step.stays:
            if found is not None:
                raise NoWayError("a tensor of the model is passed to it")
        elif found is None:
            raise NoWayError("its graph takes a tensor that is neither of the model nor passed as it is")
        else:
            brought.append((place, found))
            inputs[place] = None
    return Straight(Modes(), arguments, graph.step, inputs, tuple(brought), _result(graph.outputs, tensors, result))


def _result(outputs: Sequence[Any], tensors: Sequence[Tensor], result: Any) -> _Result:
    given = {id(output): place for place, output in enumerate(outputs) if isinstance(output, Tensor)}
    passed = {id(tensor): place for place, tensor in enumerate(tensors)}
    leaves, spec = pytree.tree_flatten(result)
    from_outputs, from_arguments = set(), set()
    for leaf, value in enumerate(leaves):
        if id(value) in given:
            leaves[leaf] = given[id(value)]
            from_outputs.add(leaf)
        elif id(value) in passed:
            leaves[leaf] = passed[id(value)]
            from_arguments.add(leaf)
        elif type(value) not in CONSTANTS:
            raise NoWayError(f"the result holds a {type(value).__name__} that its graph does not give")
    return _Result(spec, tuple(leaves), frozenset(from_outputs), frozenset(from_arguments))
