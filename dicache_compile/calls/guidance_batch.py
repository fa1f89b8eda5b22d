"""Makes two calls of one that brings both branches of guidance as one batch: each branch is a stream of its own then.

Many pipelines send the unconditional rows and the conditional ones as one batch. A rule that estimates one branch from
the other needs them apart: on a reused step the model then computes half of the rows. Which arguments have a part for
each row is told by their first size; whether that is right is held against the whole batch, once for each form of call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils import _pytree as pytree

from ..compiled import original
from ..errors import GuidanceBatchError
from ..tracing import uncompiled
from .streams import current_name, pipeline_stream

Order: TypeAlias = 'Literal["negative first", "negative last"]'
ORDERS = ("negative first", "negative last")
COND, UNCOND = "cond", "uncond"  # the names of both streams, as `estimators.GuidanceDifference` has them


class GuidanceBatch:
    """Stands in for what a model is called by."""

    def __init__(self, call: Callable[..., Any], whole: Callable[..., Any], order: Order) -> None:
        """`call`: the compiled model. `whole`: the same model, uncached, for the first call of each form."""
        if order not in ORDERS:
            raise ValueError(f"order: expected 'negative first' or 'negative last', got {order!r}")
        self.inner, self._whole, self._order = call, whole, order
        self._rows: dict[Hashable, int | None] = {}  # of a form of calls: how many rows it has, if it is split

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.inner(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        form = (spec, *map(_form, leaves))
        if form not in self._rows:
            return self._first(form, leaves, spec)
        rows = self._rows[form]
        return self.inner(*args, **kwargs) if rows is None else self._split(leaves, spec, rows)

    def _first(self, form: Hashable, leaves: Sequence[Any], spec: Any) -> Any:
        """The first call of its form: what the two calls give is held against what the whole batch does."""
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        expected = self._whole(*args, **kwargs)
        rows = _rows_of(expected)
        if rows is None or rows % 2:
            self._rows[form] = None
            return self.inner(*args, **kwargs)
        try:
            found = self._split(leaves, spec, rows)
        except BackendCompilerFailed:  # which tells what it is, and halves are no part of it
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            why = f"with half of the {rows} rows of each argument the model fails: {type(error).__name__}: {error}"
            raise GuidanceBatchError(why) from error
        if (off := _off(found, expected)) is not None:
            raise GuidanceBatchError(f"half of the {rows} rows at a time, the model gives {off}")
        self._rows[form] = rows
        return found

    def _split(self, leaves: Sequence[Any], spec: Any, rows: int) -> Any:
        if (name := current_name()) is not None and name.rpartition("/")[2] in (COND, UNCOND):
            raise GuidanceBatchError(f"the call is of the stream {name!r} already, so it brings one branch alone")
        negative, positive = (_half(leaves, rows, second) for second in (False, True))
        if self._order == "negative last":
            negative, positive = positive, negative
        given = {}
        # The conditional one first: the other one goes by it.
        for branch, own in ((COND, positive), (UNCOND, negative)):
            args, kwargs = pytree.tree_unflatten(own, spec)
            with pipeline_stream(branch):
                given[branch] = self.inner(*args, **kwargs)
        first, second = (UNCOND, COND) if self._order == "negative first" else (COND, UNCOND)
        return _joined(given[first], given[second], rows)


def split_guidance(model: nn.Module, order: Order = "negative first") -> Callable[..., Any]:
    """What is called in place of a compiled model whose calls bring both branches of guidance as one batch.

    `model` is what `torch.compile` returned, or a model that was compiled in place, with our backend. `order` says
    which half of the rows is which: diffusers pipelines put the negative prompt first, but for Lumina's. Each call
    becomes two, of the streams "cond" and "uncond", and the results are one batch again; a call of an odd number of
    rows is made as it is. `enable_cache(pipe, guidance_batch="negative first")` does the same for a pipeline.

    Costs one uncached call of the whole batch for each form of arguments, against which the first two are held. Raises
    ValueError for another order; a call raises GuidanceBatchError where half of the rows give another result.
    """
    inner = original(model)

    def whole(*args: Any, **kwargs: Any) -> Any:
        with uncompiled(inner):
            return inner(*args, **kwargs)

    return GuidanceBatch(model, whole, order)


def _form(leaf: Any) -> tuple[Any, ...]:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf),)


def _half(leaves: Sequence[Any], rows: int, second: bool) -> list[Any]:
    half = slice(rows // 2, rows) if second else slice(0, rows // 2)
    return [leaf[half] if _has_rows(leaf, rows) else leaf for leaf in leaves]


def _has_rows(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == rows


def _rows_of(result: Any) -> int | None:
    """How many rows a result has; None where it has no tensor with a first dimension."""
    tensors = (leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dim())
    return next((int(tensor.shape[0]) for tensor in tensors), None)


def _joined(first: Any, second: Any, rows: int) -> Any:
    """The result of both halves. What has no part for each row is the first one's."""
    ours, spec = pytree.tree_flatten(first)
    theirs = pytree.tree_leaves(second)
    both = zip(ours, theirs, strict=True)
    joined = [torch.cat(pair) if _has_rows(pair[0], rows // 2) else pair[0] for pair in both]
    return pytree.tree_unflatten(joined, spec)


def _off(found: Any, expected: Any) -> str | None:
    """What is not the same of a result; None: it is, but for the order of sums.

    Half of the digits have to agree: sums of other lengths lose some, and a wrong half leaves none.
    """
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    if len(ours) != len(theirs):
        return f"{len(ours)} values, and {len(theirs)} of all at once"
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            continue
        if one.shape != other.shape:
            return f"{tuple(one.shape)}, and {tuple(other.shape)} of all at once"
        if not one.is_floating_point():
            continue
        distance = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)
        if not distance <= torch.finfo(one.dtype).eps ** 0.5:
            return f"another result than of all at once, {float(distance):.1%} off"
    return None
