"""One stream's step, captured: fixed tensors around the captured pieces, and the one launch that runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..cuda.captures import Captured, Launch
from ..errors import CaptureError
from .engines import Pieces
from .static_inputs import static_inputs
from .weights import Addresses

T = TypeVar("T")


class Captures(Protocol):
    """What captures need of a device: `cuda.captures.CudaCaptures`, or a stand-in for it."""

    def turn(self) -> AbstractContextManager[int]: ...
    def warm_up(self, run: Callable[[], T]) -> T: ...
    def capture(self, run: Callable[[], T]) -> tuple[Any, T]: ...
    def branch_on_device(self, captured: Captured) -> Launch: ...
    def branch_on_host(self, captured: Captured) -> Launch: ...
    def settle(self) -> None: ...
    def abandon(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Program:
    """What a recording is made of."""

    pieces: Pieces
    changing: tuple[int, ...]  # which inputs are tensors that are new on each call
    weights: tuple[int, ...]  # which are tensors that stay where they are
    numbers: tuple[int, ...]  # which are numbers, or tensors on the host that hold one


Key = tuple[Any, ...]


def shape_key(program: Program, inputs: Sequence[Any]) -> Key:
    """What a capture is made for: equal keys, equal numbers and shapes."""
    shapes = ((inputs[place].shape, inputs[place].stride()) for place in program.changing)
    numbers = (inputs[place] for place in program.numbers)
    return (*shapes, *(number.item() if isinstance(number, Tensor) else number for number in numbers))


class Recording:
    """A captured step of one stream, for one shape and for weights at one place."""

    def __init__(self, program: Program, captures: Captures, inputs: Sequence[Any], state: Sequence[Tensor]) -> None:
        """Warms up and captures the pieces; neither changes `state`. Raises whatever a piece or a capture raises."""
        self._program, self._captures = program, captures
        self.key = shape_key(program, inputs)
        self.addresses = Addresses(inputs, program.weights)
        self.runs = 0
        self._inputs = static_inputs(inputs, program.changing)
        self._streams: set[int] = set()  # CUDA streams that it has run on
        with captures.turn():
            self._inputs.fill(inputs)
            fixed = [self._inputs.tensors.get(place, value) for place, value in enumerate(inputs)]
            self._outputs = _warm_up(program.pieces, captures, fixed, state)
            self.captured = _capture(program.pieces, captures, [*fixed, *state], self._outputs)
        self._state = tuple(state)
        self.launch: Launch | None = None
        self.rung: Any = None  # how the launch takes the branch, for the engine to tell

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether it was made for these numbers, shapes and places of weights."""
        return shape_key(self._program, inputs) == self.key and self.addresses.hold(inputs)

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
        for tensor in (*self._inputs.tensors.values(), *self._state, *self._outputs):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def __del__(self) -> None:
        with suppress(Exception):  # of a recording that failed half-way, or at the end of the process
            self._captures.settle()


def _warm_up(pieces: Pieces, captures: Captures, inputs: Sequence[Any], state: Sequence[Tensor]) -> list[Any]:
    """Runs every piece once, on a copy of the state: tensors for what the step gives, and numbers as they are."""
    copied = [tensor.clone() for tensor in state]

    def once_each() -> Sequence[Any]:
        _, *crossing = pieces.probe([*inputs, *copied])
        known = [*inputs, *copied, *crossing]
        pieces.estimate(known)
        return pieces.deep(known)

    return [_fixed(output) for output in captures.warm_up(once_each)]


def _capture(pieces: Pieces, captures: Captures, known: Sequence[Any], outputs: Sequence[Any]) -> Captured:
    probe, (reuse, *crossing) = captures.capture(lambda: tuple(pieces.probe(known)))
    assert (reuse.dtype, reuse.shape) == (torch.bool, ())  # a kernel is about to read it by its address
    known = [*known, *crossing]
    # What crosses is kept until both are captured, so that neither takes its memory; they may take each other's.
    deep, _ = captures.capture(lambda: _write(pieces.deep(known), outputs))
    estimate, _ = captures.capture(lambda: _write(pieces.estimate(known), outputs))
    return Captured(probe, reuse, deep, estimate)


def _write(results: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Copies a piece's results to where the step's outputs are."""
    for result, output in zip(results, outputs, strict=True):
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
