"""Runs the methods of a gate and an estimator once on tensors without data, and holds what they give against `policy`.

What is not of the right shape would be broadcast, in the model's result too; a slot that is not the method's own would
be another's. Requires: the streams' tensors. Not handled: a method that asks for a value, or that calls an operator
which cannot run without data; it is traced unseen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from ..policy import (
    CheckedEstimator,
    Decider,
    EstimateGate,
    Estimator,
    FollowingEstimator,
    Gate,
    SlotSpec,
    settings_of,
)
from .constants import PlacesOnDevice


class _UnseenError(Exception):
    """A method that cannot be run without data, and may well be right."""


_UNSEEN = (_UnseenError, DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True, slots=True)
class Shown:
    """A stream as the methods see it."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]  # of x, h and y
    kept: Mapping[str, torch.dtype]  # of a slot of the stream's shape, as it is read


def try_policy(gate: Decider, estimator: Estimator, streams: Sequence[Shown], device: torch.device) -> None:
    """Tries each method for each stream.

    Raises TypeError or ValueError that names the class, the method and the slot, what was found and what is expected.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), torch.device(device), PlacesOnDevice():
        for stream in streams:
            _Trial(gate, estimator, stream, streams[0]).run()


@dataclass(frozen=True, slots=True)
class _Trial:
    gate: Decider
    estimator: Estimator
    stream: Shown
    first: Shown  # whose shape the gate's slots have that are not per stream

    def run(self) -> None:
        gate, estimator, stream = self.gate, self.estimator, self.stream
        x, h, y = (torch.empty(stream.shape, dtype=dtype) for dtype in stream.dtypes)
        reuse, anchors = torch.empty((), dtype=torch.bool), torch.empty((), dtype=torch.int64)
        number = torch.empty(())
        own = self._state(gate, lambda spec: spec.per_stream)
        shared = self._state(gate, lambda spec: not spec.per_stream)
        known = self._state(estimator, lambda spec: spec.per_stream)
        scalars = self._state(estimator, lambda spec: spec.scalar)

        _number(estimator.weigh, x, h, anchors, known)
        _tensor(estimator.estimate, stream.shape, x, number, anchors, known)
        if isinstance(gate, EstimateGate):
            assert isinstance(estimator, CheckedEstimator)
            _number(estimator.check, x, h, number, anchors, known)
            _number(gate.measure_estimate, number)
        else:
            assert isinstance(gate, Gate)
            _number(gate.measure, x, h, own)
        _tuple_of(gate.judge, 2, number, shared, first=torch.bool)
        self._slots(gate.settle, self._shapes(gate, lambda spec: not spec.per_stream), number, reuse, shared)
        self._slots(gate.follow, self._shapes(gate, lambda spec: True), x, h, reuse, own)
        if isinstance(estimator, FollowingEstimator):
            shapes = self._shapes(estimator, lambda spec: spec.scalar)
            self._slots(estimator.follow, shapes, number, reuse, anchors, scalars)
        every = self._shapes(estimator, lambda spec: True)
        self._slots(estimator.anchor, every, x, h, y, known)

    def _state(self, policy: Decider | Estimator, wanted: Callable[[SlotSpec], bool]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for spec in filter(wanted, policy.slots()):
            for name in spec.reads:
                kept = torch.float32 if spec.scalar else self._stream_of(spec).kept[spec.name]
                found[name] = torch.empty(self._shape(spec), dtype=kept)
        return found | {setting.name: torch.empty(setting.shape) for setting in settings_of(policy)}

    def _shapes(self, policy: Decider | Estimator, wanted: Callable[[SlotSpec], bool]) -> dict[str, tuple[int, ...]]:
        return {spec.name: self._shape(spec) for spec in filter(wanted, policy.slots())}

    def _shape(self, spec: SlotSpec) -> tuple[int, ...]:
        return () if spec.scalar else self._stream_of(spec).shape

    def _stream_of(self, spec: SlotSpec) -> Shown:
        return self.stream if spec.per_stream else self.first

    def _slots(
        self,
        method: Callable[..., Any],
        shapes: Mapping[str, tuple[int, ...]],
        *arguments: Any,
    ) -> None:
        """Tries a method that gives slots."""
        with _unless_unseen():
            given = _run(method, *arguments)
            if not isinstance(given, Mapping):
                raise TypeError(f"{method_name(method)} returned {_found(given)}, expected a dict of slots")
            own = [(slot, value) for slot, value in given.items() if slot in shapes]  # of others the tracing tells
            for slot, value in own:
                _check(
                    f"{method_name(method)} gave the slot {slot!r}",
                    value,
                    shapes[slot],
                    lambda dtype: not dtype.is_complex,
                )


def _number(method: Callable[..., Any], *arguments: Any) -> None:
    _tensor(method, (), *arguments)


def _tensor(method: Callable[..., Any], shape: tuple[int, ...], *arguments: Any) -> None:
    with _unless_unseen():
        _check(f"{method_name(method)} returned", _run(method, *arguments), shape, _is_real)


def _tuple_of(method: Callable[..., Any], count: int, *arguments: Any, first: torch.dtype | None = None) -> None:
    """Tries a method that gives several tensors of shape (), the first of this dtype."""
    with _unless_unseen():
        given = _run(method, *arguments)
        if not isinstance(given, (tuple, list)) or len(given) != count:
            raise TypeError(f"{method_name(method)} returned {_found(given)}, expected a tuple of {count} tensors")
        for place, value in enumerate(given):
            wanted = (lambda dtype: dtype is first) if place == 0 and first is not None else _is_real
            _check(
                f"{method_name(method)} returned, in place {place},", value, (), wanted, first if place == 0 else None
            )


def _run(method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return method(*arguments)
    except _UNSEEN:
        raise
    except Exception as error:
        if "Device Propagation" in str(error):  # a constant on another device, which the tracing moves
            raise _UnseenError from error
        raise ValueError(f"{method_name(method)} failed: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _unless_unseen() -> Iterator[None]:
    with contextlib.suppress(*_UNSEEN):
        yield


def _check(
    what: str,
    value: object,
    shape: tuple[int, ...],
    wanted: Callable[[torch.dtype], bool],
    dtype: torch.dtype | None = None,
) -> None:
    expected = f"expected {_text(dtype) if dtype is not None else 'a real tensor'} of shape {shape}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} {_found(value)}, {expected}")
    if tuple(value.shape) != shape or not wanted(value.dtype):
        raise ValueError(f"{what} {_found(value)}, {expected}")


def _is_real(dtype: torch.dtype) -> bool:
    return not dtype.is_complex and dtype is not torch.bool


def _found(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{_text(value.dtype)} of shape {tuple(value.shape)}"
    return f"{value!r} of type {type(value).__name__}" if isinstance(value, (int, float)) else type(value).__name__


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def method_name(method: Callable[..., Any]) -> str:
    """'Interval.judge' of a method of a gate or an estimator."""
    return f"{type(getattr(method, '__self__', None)).__name__}.{method.__name__}"
