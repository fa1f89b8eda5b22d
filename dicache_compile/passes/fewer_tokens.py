"""Runs nodes on fewer tokens than they were traced with, without data, and tells which of their dimensions is theirs.

Requires: nodes in graph order. Ensures: of what it lets pass, each token is computed from that token alone; whatever is
not known to be so is refused. Not handled: tokens that are folded into another dimension; operations that take the
number of tokens as a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import MixedTokensError
from ..graph import effects, operators, values

TOKENS = -2  # the dimension of tokens in what a site gives


class FewerTokens:
    """The values of nodes with one token less than they had."""

    def __init__(self, y: fx.Node) -> None:
        """`y`: what a site gives, [..., T, C]. Raises MixedTokensError where there are no two tokens."""
        recorded = values.tensor(y)
        shape = values.shape_hint(recorded) if recorded is not None else ()
        if len(shape) < 2 or shape[TOKENS] < 2:
            raise MixedTokensError(f"a site gives {list(shape)}, which has no two tokens to choose from", y)
        self._tokens = shape[TOKENS]
        self._mode = FakeTensorMode()
        self._known: dict[fx.Node, Any] = {}
        self._dims: dict[fx.Node, int] = {}  # of tokens, counted from the last one: -2, say
        self.taken: list[fx.Node] = []  # of which some tokens are taken

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._dims

    def dim(self, node: fx.Node) -> int:
        """Which dimension is that of the tokens, counted from the last one."""
        return self._dims[node]

    def take(self, node: fx.Node) -> None:
        """Takes some tokens of a value of all of them, [..., T, C], if that was not done before."""
        if node not in self.taken:
            self.taken.append(node)
            self._known[node], self._dims[node] = self._value(node, fewer=True), TOKENS

    def reads(self, node: fx.Node) -> bool:
        """Whether a node needs what was run."""
        return any(n in self and n not in self.taken for n in node.all_input_nodes)

    def take_beside(self, node: fx.Node) -> None:
        """Takes some tokens of those operands of a node that have a part for each of them, and all of them.

        Raises MixedTokensError where they do not stand beside the tokens.
        """
        dims = {self._dims[n] for n in node.all_input_nodes if n in self}
        for other in node.all_input_nodes if operators.is_pointwise(node) else ():
            recorded = values.tensor(other)
            if other in self or recorded is None:
                continue
            shape = values.shape_hint(recorded)
            if any(len(shape) >= -dim and shape[dim] > 1 for dim in dims):
                if dims != {TOKENS} or shape[TOKENS] != self._tokens:
                    raise MixedTokensError(f"`{other.name}` does not stand beside the tokens, one for each", node)
                self.take(other)

    def run(self, node: fx.Node) -> None:
        """Runs a node of which some operands have fewer tokens. Raises MixedTokensError where it may mix them."""
        if not self._may(node):
            raise MixedTokensError("an operation is not known to compute each token by itself", node)
        try:
            new = self._called(node)
        except Exception as error:  # whatever an operation says of a shape that it does not expect
            raise MixedTokensError("an operation cannot run on some of the tokens alone", node) from error
        dims = {self._found(before, after) for before, after in _pairs(values.value(node), new)}
        dim = dims.pop() if len(dims) == 1 else None
        if dim is None or not self._stays(node, dim):
            raise MixedTokensError("an operation does not give each token a part of its own", node)
        self._known[node], self._dims[node] = new, dim

    def _may(self, node: fx.Node) -> bool:
        """Whether an operation computes each token by itself, provided that it keeps a dimension for them."""
        shared = {memory for one in self.taken for memory in values.storages(one)}
        if any(target not in self or values.storages(target) & shared for target in effects.written(node)):
            return False  # what is taken is a copy, and others read what it is taken of
        of_tokens = [n for n in node.all_input_nodes if n in self]
        first = node.args[0] if node.args else None
        if operators.is_item(node):
            places = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            return of_tokens == [first] and not any(isinstance(n, (fx.Node, list)) for n in places)
        if operators.is_linear(node) or (operators.is_contraction(node) and not operators.is_einsum(node)):
            return of_tokens == [first] and first is not None and self._dims[of_tokens[0]] != -1
        if operators.normalises(node):
            shape = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
            normalised = len(shape) if isinstance(shape, (tuple, list)) else math.inf
            return bool(of_tokens == [first] and -self._dims[of_tokens[0]] > normalised)
        if operators.is_pointwise(node) or operators.hands_on(node):
            return True
        one = (operators.reshapes, operators.turns, operators.reduces)
        return of_tokens == [first] and any(told(node) for told in one)

    def _stays(self, node: fx.Node, dim: int) -> bool:
        """Whether a reshape leaves the tokens where they are in memory, rather than to read others as tokens."""
        if not operators.reshapes(node):
            return True
        (of,) = (n for n in node.all_input_nodes if n in self)
        before, after = self._known[of].shape, _tensor(values.value(node))
        return bool(math.prod(before[: self._dims[of]]) == math.prod(after[:dim]))

    def _found(self, before: object, after: object) -> int | None:
        """The one dimension in which two values differ, if that is the tokens'."""
        if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dim() != after.dim():
            return None
        sizes = list(zip(values.shape_hint(before), after.shape, strict=True))
        changed = [place for place, (old, new) in enumerate(sizes) if old != new]
        if len(changed) != 1 or sizes[changed[0]] != (self._tokens, self._tokens - 1):
            return None
        return changed[0] - before.dim()

    def _called(self, node: fx.Node) -> Any:
        with self._mode, torch.no_grad():
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._given)
            call: Any = node.target if callable(node.target) else getattr(args[0], str(node.target))
            return _in_float32(call(*(args if callable(node.target) else args[1:]), **kwargs))

    def _given(self, node: fx.Node) -> Any:
        return self._known[node] if node in self._known else self._value(node)

    def _value(self, node: fx.Node, fewer: bool = False) -> Any:
        """A node's value as it was traced, in float32 if it is one of floats: autocast is not looked at."""
        recorded = values.value(node)
        if node.op == "get_attr" and recorded is None:
            recorded = getattr(node.graph.owning_module, str(node.target), None)
        if isinstance(recorded, (torch.SymInt, torch.SymFloat)):
            return recorded.node.hint
        if not isinstance(recorded, Tensor):
            return recorded
        shape = list(values.shape_hint(recorded))
        if fewer:
            shape[TOKENS] -= 1
        dtype = torch.float32 if recorded.dtype.is_floating_point else recorded.dtype
        with self._mode:
            return torch.empty(shape, dtype=dtype, device=recorded.device)


def _pairs(before: object, after: object) -> list[tuple[object, object]]:
    if isinstance(before, (tuple, list)) and isinstance(after, (tuple, list)):
        return list(zip(before, after, strict=True)) if len(before) == len(after) else [(None, None)]
    return [(before, after)]


def _tensor(value: object) -> tuple[int, ...]:
    assert isinstance(value, Tensor)
    return values.shape_hint(value)


def _in_float32(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_in_float32(part) for part in value)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
