"""Runs the methods of a gate and an estimator once on tensors without data, and holds what they give against `rules`.

What is not of the right shape would be broadcast, in the model's result too; a slot that is not the method's own would
be another's. Requires: the tensors of the carried values. Not handled: a method that asks for a value, or that calls an
operator which cannot run without data; it is traced unseen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from ..rules import (
    GIVEN_SLOTS,
    Aid,
    CheckedEstimator,
    Decider,
    EstimateGate,
    Estimator,
    FollowingEstimator,
    Gate,
    KeepingEstimator,
    LearningGate,
    Seen,
    SlotSpec,
    TokenEstimator,
)
from .constants import PlacesOnDevice


class _UnseenError(Exception):
    """A method that cannot be run without data, and may well be right."""


_UNSEEN = (_UnseenError, DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True, slots=True)
class Shown:
    """A carried value as the methods see it."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]  # of x, h and y
    kept: Mapping[str, torch.dtype]  # of a slot of its shape, as it is read


def try_rule(gate: Decider | None, carried: Sequence[tuple[Estimator, Shown]], device: torch.device) -> list[Aid]:
    """Tries each method for each carried value with its estimator; the estimator's aids for each.

    Raises TypeError or ValueError that names the class, the method and the slot, what was found and what is expected.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), torch.device(device), PlacesOnDevice():
        return [_Trial(gate, estimator, shown, carried[0][1]).run() for estimator, shown in carried]


@dataclass(frozen=True, slots=True)
class _Trial:
    gate: Decider | None
    estimator: Estimator
    shown: Shown
    first: Shown  # whose shape the gate's shared slots have

    def run(self) -> Aid:
        x, h, y = (torch.empty(self.shown.shape, dtype=dtype) for dtype in self.shown.dtypes)
        count, number = torch.empty((), dtype=torch.int64), torch.empty(())
        bare = Seen(x, h, {}, index=count, time=number, anchors=count, since=count)
        estimator, reused = self.estimator, torch.empty((), dtype=torch.bool)
        known = replace(bare, state=self._state(estimator, lambda spec: True))
        known = replace(known, aid=_aid(estimator.aid, known))
        _tensor(estimator.estimate, self.shown.shape, known)
        if isinstance(estimator, TokenEstimator):
            self._try_tokens(estimator, known, y)
        if self.gate is not None:
            self._try_gate(self.gate, bare, known, y)
        if isinstance(estimator, FollowingEstimator):
            counting = replace(known, state=self._state(estimator, _is_number), reused=reused)
            self._slots(estimator.follow, self._shapes(estimator, _is_number), counting)
        self._slots(estimator.anchor, self._shapes(estimator, lambda spec: True), replace(known, y=y))
        if isinstance(estimator, KeepingEstimator):
            self._slots(estimator.keep, self._shapes(estimator, _is_one), replace(known, y=y))
        aid: Aid = known.aid
        return aid

    def _try_tokens(self, estimator: TokenEstimator, known: Seen, y: Tensor) -> None:
        with _unless_unseen():
            places = _run(estimator.pick, known)
            *leading, _, channels = self.shown.shape
            if not isinstance(places, Tensor) or list(places.shape[:-1]) != leading or places.dtype is not torch.int64:
                expected = f"expected int64 of shape {(*leading, 'k')}"
                raise TypeError(f"{method_name(estimator.pick)} returned {_found(places)}, {expected}")
            y = torch.empty((*places.shape, channels), dtype=y.dtype)
            self._slots(estimator.renew, self._shapes(estimator, lambda spec: True), replace(known, places=places, y=y))

    def _try_gate(self, gate: Decider, bare: Seen, known: Seen, y: Tensor) -> None:
        number, reused = torch.empty(()), torch.empty((), dtype=torch.bool)
        own = replace(bare, state=self._state(gate, lambda spec: not spec.shared))
        shared = replace(bare, state=self._state(gate, lambda spec: spec.shared), error=number, before=reused)
        if isinstance(gate, EstimateGate):
            assert isinstance(self.estimator, CheckedEstimator)
            _number(self.estimator.check, known)
            _number(gate.measure_estimate, replace(own, check=number))
        else:
            assert isinstance(gate, Gate)
            _number(gate.measure, own)
        _decision(gate.judge, shared)
        self._slots(gate.settle, self._shapes(gate, lambda spec: spec.shared), replace(shared, reused=reused))
        self._slots(gate.follow, self._shapes(gate, lambda spec: True), replace(own, reused=reused))
        if isinstance(gate, LearningGate):
            taught = replace(bare, state=self._state(gate, lambda spec: True), y=y)
            self._slots(gate.learn, self._shapes(gate, lambda spec: True), taught)

    def _state(self, of: Decider | Estimator, wanted: Callable[[SlotSpec], bool]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for spec in filter(wanted, of.slots()):
            for name in spec.reads:
                kept = self._of(spec).kept[spec.name] if spec.like == "carried" else torch.float32
                found[name] = torch.empty(self._shape(spec), dtype=kept)
        return found | {setting.name: torch.empty(setting.shape) for setting in of.settings()}

    def _shapes(self, of: Decider | Estimator, wanted: Callable[[SlotSpec], bool]) -> dict[str, tuple[int, ...]]:
        return {spec.name: self._shape(spec) for spec in filter(wanted, of.slots()) if spec.name not in GIVEN_SLOTS}

    def _shape(self, spec: SlotSpec) -> tuple[int, ...]:
        shape = self._of(spec).shape
        return spec.shape if spec.like == "number" else (*shape[:-1], 1) if spec.like == "tokens" else shape

    def _of(self, spec: SlotSpec) -> Shown:
        return self.first if spec.shared else self.shown

    def _slots(
        self,
        method: Callable[..., Any],
        shapes: Mapping[str, tuple[int, ...]],
        seen: Seen,
    ) -> None:
        """Tries a method that gives slots."""
        with _unless_unseen():
            given = _run(method, seen)
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


def _is_one(spec: SlotSpec) -> bool:
    return not spec.history


def _is_number(spec: SlotSpec) -> bool:
    return spec.like == "number"


def _number(method: Callable[[Seen], Any], seen: Seen) -> None:
    _tensor(method, (), seen)


def _tensor(method: Callable[[Seen], Any], shape: tuple[int, ...], seen: Seen) -> None:
    with _unless_unseen():
        _check(f"{method_name(method)} returned", _run(method, seen), shape, _is_real)


def _aid(method: Callable[[Seen], Aid], seen: Seen) -> Aid:
    """Tries a method that gives an aid, of any shape; what it gives."""
    with _unless_unseen():
        given = _run(method, seen)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not (isinstance(value, Tensor) and _is_real(value.dtype)):
                expected = "expected None, a real tensor or a tuple of them"
                raise TypeError(f"{method_name(method)} returned {_found(value)}, {expected}")
        return given  # type: ignore[no-any-return]
    return torch.empty(())


def _decision(method: Callable[[Seen], Any], seen: Seen) -> None:
    """Tries a method that gives a decision and the number behind it."""
    with _unless_unseen():
        given = _run(method, seen)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise TypeError(f"{method_name(method)} returned {_found(given)}, expected a tuple of 2 tensors")
        may, compared = given
        what = f"{method_name(method)} returned, in place"
        _check(f"{what} 0,", may, (), lambda dtype: dtype is torch.bool, torch.bool)
        _check(f"{what} 1,", compared, (), _is_real)


def _run(method: Callable[[Seen], Any], seen: Seen) -> Any:
    try:
        return method(seen)
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
