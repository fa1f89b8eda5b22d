"""One stream's step, captured: fixed tensors around the captured pieces, and the one launch that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import CaptureError
from .base import LoweredChoice, LoweredOp, LoweredProgram
from .cuda.captures import Choice, Launch, Part
from .static_inputs import static_inputs
from .weights import Addresses

T = TypeVar("T")


class Captures(Protocol):
    """What captures need of a device: `engines.cuda.captures.CudaCaptures`, or a stand-in for it."""

    def turn(self) -> AbstractContextManager[int]: ...
    def warm_up(self, run: Callable[[], T]) -> T: ...
    def capture(self, run: Callable[[], T]) -> tuple[Any, T]: ...
    def branch_on_device(self, parts: Sequence[Part]) -> Launch: ...
    def branch_on_host(self, parts: Sequence[Part]) -> Launch: ...
    def settle(self) -> None: ...
    def abandon(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording is made of."""

    program: LoweredProgram
    changing: tuple[int, ...]  # which inputs are tensors that are new on each call
    weights: tuple[int, ...]  # which are tensors that stay where they are
    numbers: tuple[int, ...]  # which are numbers, or tensors on the host that hold one


Key = tuple[Any, ...]


def shape_key(recorded: Recorded, inputs: Sequence[Any]) -> Key:
    """What a capture is made for: equal keys, equal numbers and shapes."""
    shapes = ((inputs[place].shape, inputs[place].stride()) for place in recorded.changing)
    numbers = (inputs[place] for place in recorded.numbers)
    return (*shapes, *(number.item() if isinstance(number, Tensor) else number for number in numbers))


class Recording:
    """A captured step of one stream, for one shape and for weights at one place."""

    def __init__(self, recorded: Recorded, captures: Captures, inputs: Sequence[Any], state: Sequence[Tensor]) -> None:
        """Warms up and captures the pieces; neither changes `state`. Raises whatever a piece or a capture raises."""
        self._recorded, self._captures = recorded, captures
        self.key = shape_key(recorded, inputs)
        self.addresses = Addresses(inputs, recorded.weights)
        self._held: object = None  # for which the weights were looked at
        self.runs = 0
        self._inputs = static_inputs(inputs, recorded.changing)
        self._streams: set[int] = set()  # CUDA streams that it has run on
        with captures.turn():
            self._inputs.fill(inputs)
            fixed = [self._inputs.tensors.get(place, value) for place, value in enumerate(inputs)]
            merged = _warm_up(recorded.program, captures, fixed, state)
            registers = recorded.program.registers(fixed, state)
            self.parts = _capture(recorded.program.ops, captures, registers, merged)
            self._outputs = recorded.program.outputs(registers)
            self._merged = merged  # what is captured writes to
        self._state = tuple(state)
        self.launch: Launch | None = None
        self.rung: Any = None  # how the launch takes the branch, for the engine to tell

    def fits(self, inputs: Sequence[Any], held: object = None) -> bool:
        """Whether it was made for these numbers, shapes and places of weights.

        While `held` is the same object, the weights lie where they did, and are looked at once.
        """
        if shape_key(self._recorded, inputs) != self.key:
            return False
        if held is None or held is not self._held:
            if not self.addresses.hold(inputs):
                return False
            self._held = held
        return True

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """A step. The outputs are the caller's to keep."""
        assert self.launch is not None
        with self._captures.turn() as stream:
            if stream not in self._streams:
                self._streams.add(stream)
                self._use_on_current_stream()
            self._inputs.fill(inputs)
            self.launch()
            self.runs += 1
            return [output.clone() if isinstance(output, Tensor) else output for output in self._outputs]

    def order(self) -> None:
        """Makes the current stream wait for the last launch of any recording."""
        with self._captures.turn():
            pass

    def _use_on_current_stream(self) -> None:
        """Tells the allocator that what may have been allocated on another stream is used on this one, too.

        On the first one as well: the slots that a request's streams share were allocated for the first of them.
        """
        for tensor in (*self._inputs.tensors.values(), *self._state, *self._outputs, *self._merged.values()):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def __del__(self) -> None:
        with suppress(Exception):  # of a recording that failed half-way, or at the end of the process
            self._captures.settle()


def _warm_up(
    program: LoweredProgram, captures: Captures, inputs: Sequence[Any], state: Sequence[Tensor]
) -> dict[int, Any]:
    """Runs every piece once, on a copy of the state.

    Gives what the registers hold, after the choices, that both ways of one give: tensors outside of the memory that
    captures share, and numbers as they are.
    """
    merged: dict[int, Any] = {}

    def run(ops: Sequence[LoweredOp], registers: list[Any]) -> None:
        for op in ops:
            if not isinstance(op, LoweredChoice):
                op(registers)
                continue
            other = list(registers)
            run(op.reused, other)
            run(op.deep, registers)
            merged.update({place: _fixed(registers[place]) for place in _both_give(op)})

    captures.warm_up(lambda: run(program.ops, program.registers(inputs, [tensor.clone() for tensor in state])))
    return merged


def _capture(
    ops: Sequence[LoweredOp],
    captures: Captures,
    registers: list[Any],
    merged: Mapping[int, Any],
    write: Callable[[], None] | None = None,
) -> tuple[Part, ...]:
    """Captures operations, the last one with `write` after it; the registers then hold what they give."""
    found: list[Part] = []
    for op in ops:
        if isinstance(op, LoweredChoice):
            found.append(_capture_choice(op, captures, registers, merged))
        else:
            end, write = (write, None) if op is ops[-1] else (None, write)
            found.append(captures.capture(partial(_run, op, registers, end))[0])
    if write is not None:
        found.append(captures.capture(write)[0])
    return tuple(found)


def _run(op: LoweredOp, registers: list[Any], write: Callable[[], None] | None) -> None:
    op(registers)
    if write is not None:
        write()


def _capture_choice(
    choice: LoweredChoice, captures: Captures, registers: list[Any], merged: Mapping[int, Any]
) -> Choice:
    reuse = registers[choice.by]
    assert (reuse.dtype, reuse.shape) == (torch.bool, ())  # a kernel is about to read it by its address
    ways = []
    for ops in (choice.deep, choice.reused):
        # What was captured before is kept until both are captured, so that neither takes its memory; they may take each
        # other's.
        own = list(registers)
        results = {place: merged[place] for place in _both_give(choice)}
        ways.append(_capture(ops, captures, own, merged, partial(_write, own, results)))
    registers[:] = [merged.get(place, value) for place, value in enumerate(registers)]
    return Choice(reuse, *ways)


def _both_give(choice: LoweredChoice) -> set[int]:
    return _given(choice.deep) & _given(choice.reused)


def _given(ops: Sequence[LoweredOp]) -> set[int]:
    given: set[int] = set()
    for op in ops:
        given |= _both_give(op) if isinstance(op, LoweredChoice) else set(op.gives)
    return given


def _write(registers: Sequence[Any], fixed: Mapping[int, Any]) -> None:
    """Copies a way's results to where they are wanted whichever way ran."""
    for place, output in fixed.items():
        result = registers[place]
        if isinstance(output, Tensor):
            if result.shape != output.shape or result.dtype != output.dtype:
                raise CaptureError(
                    f"the deep blocks give {tuple(output.shape)} {output.dtype}, "
                    f"and the estimate {tuple(result.shape)} {result.dtype}"
                )
            output.copy_(result)
        elif result != output:
            raise CaptureError(f"the deep blocks give {output!r}, and the estimate {result!r}")


def _fixed(output: Any) -> Any:
    """A tensor for an output, outside of the memory that captures share; a number or None is itself."""
    if not isinstance(output, Tensor):
        return output
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_like(output)
