"""Captures on one CUDA device: they share one stream, one memory pool, and one order in which they run."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...collecting import no_garbage_collection
from ...errors import StepError
from .conditional import Branch, ConditionalGraph
from .driver import CudaError, why_no_conditional

T = TypeVar("T")
Launch = Callable[[], None]

_LEGACY_STREAM = 1  # CU_STREAM_LEGACY: what torch means by 0, whatever the bindings were told to take 0 for
_lock = threading.RLock()  # one capture at a time: garbage collection is off for the whole process meanwhile


@dataclass(frozen=True, slots=True)
class Choice:
    """Two ways, of which a value on the device says which one runs."""

    reuse: Tensor  # bool, shape (), that an earlier part writes
    deep: tuple[Part, ...]
    reused: tuple[Part, ...]


Part = Any  # torch.cuda.CUDAGraph, which owns its memory in the pool and must outlive a graph made of it; or a Choice


class CudaCaptures:
    """What the captured engines need of a device.

    Memory that captures use within a launch is shared by all of them, so launches must not overlap: `turn` puts them
    in one order, whichever streams and threads they come from.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._stream = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._turns = threading.RLock()
        self._last: torch.cuda.Stream | None = None  # where the last launch went
        self._last_handle: int | None = None

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Inside, the device is current, and what is launched on the current stream waits for earlier launches.

        Gives a number for the current stream.
        """
        with self._turns, torch.cuda.device(self._index):
            handle = torch._C._cuda_getCurrentRawStream(self._index)
            if handle != self._last_handle:
                current = torch.cuda.current_stream(self._index)
                if self._last is not None:
                    current.wait_stream(self._last)
                self._last, self._last_handle = current, handle
            yield handle

    def warm_up(self, run: Callable[[], T]) -> T:
        """Runs once where captures are made: kernels are loaded and tuned now, which a capture must not do."""
        current = torch.cuda.current_stream(self._index)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), _no_autocast_cache():
                return run()
        finally:
            current.wait_stream(self._stream)

    def capture(self, run: Callable[[], T]) -> tuple[Any, T]:
        """Captures what `run` launches: (the graph, what it returned). The values are there after a launch only.

        Whatever tensor a later capture reads must be kept until that one is made, or its memory is taken by it.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        current = torch.cuda.current_stream(self._index)
        inference = torch.is_inference_mode_enabled()
        try:
            with (
                _lock,
                _own_workspaces(),
                no_garbage_collection(),  # it may free another graph, which a capture does not allow
                # Or the generator's own tensors could not be written to outside of inference mode (torch 2.9, 2.10).
                torch.inference_mode(False),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
                torch.inference_mode(inference),
                torch.no_grad(),  # last: leaving inference mode turns gradients on
                _no_autocast_cache(),
            ):
                result = run()
        except BaseException:
            torch.cuda.set_stream(current)  # where the capture's end failed, its stream is still the current one
            self._recover(graph)
            raise
        return graph, result

    def branch_on_device(self, parts: Sequence[Part]) -> Launch:
        """One launch: the captured parts one after the other, and of a choice the way that its value asks for.

        Raises CudaError where the driver, its bindings or one of the graphs cannot do that.
        """
        with torch.cuda.device(self._index):
            if reason := why_no_conditional():
                raise CudaError(reason)
            capability = torch.cuda.get_device_capability(self._index)
            graph = ConditionalGraph(self._index, capability, _handles(parts))
        return lambda: graph.launch(torch._C._cuda_getCurrentRawStream(self._index) or _LEGACY_STREAM)

    def branch_on_host(self, parts: Sequence[Part]) -> Launch:
        """A launch of each captured part; at a choice a wait for its value."""
        with torch.cuda.device(self._index), torch.inference_mode(False):
            launches = _launches(parts)

        def launch() -> None:
            for each in launches:
                each()

        return launch

    def settle(self) -> None:
        """Before captures are freed: the pool's stream, by which the allocator goes, waits for what still runs."""
        with self._turns:
            if self._last is not None:
                self._stream.wait_stream(self._last)

    def abandon(self) -> None:
        """After a recording that failed: the next ones get a pool of their own, whatever became of this one."""
        if _captures.get(self._index) is self:
            del _captures[self._index]

    def _recover(self, graph: Any) -> None:
        """After a capture that failed to end, torch's allocator (and in 2.11 its generator) still believe in it."""
        _failed.append(graph)
        with suppress(RuntimeError):  # the first call, where it did end
            torch._C._cuda_endAllocateToPool(self._index, self._pool)
            torch._C._cuda_releasePool(self._index, self._pool)
        # A capture that does end puts that right.
        trivial = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream)
        with suppress(RuntimeError), torch.cuda.device(self._index), trivial:
            torch.zeros((), device="cuda")


def _handles(parts: Sequence[Part]) -> tuple[int | Branch, ...]:
    return tuple(
        Branch(part.reuse.data_ptr(), _handles(part.deep), _handles(part.reused))
        if isinstance(part, Choice)
        else part.raw_cuda_graph()
        for part in parts
    )


def _launches(parts: Sequence[Part]) -> list[Launch]:
    return [_launch_of(part) for part in parts]


def _launch_of(part: Part) -> Launch:
    if not isinstance(part, Choice):
        part.instantiate()
        replay: Launch = part.replay
        return replay
    deep, reused = _launches(part.deep), _launches(part.reused)
    seen = torch.empty((), dtype=torch.bool, pin_memory=True)
    written = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def choose() -> None:
        seen.copy_(part.reuse, non_blocking=True)
        written.record()
        written.synchronize()
        for launch in reused if seen.item() else deep:
            launch()

    return choose


_failed: list[Any] = []  # graphs whose capture did not end: torch's allocators still ask them
# By weak reference: a pool whose graphs are all gone cannot be taken up again.
_captures: weakref.WeakValueDictionary[int, CudaCaptures] = weakref.WeakValueDictionary()


def why_unfit_allocator() -> str | None:
    """The reason why captures cannot be made with the allocator in force, or None."""
    backend = torch.cuda.get_allocator_backend()
    if backend == "native":
        return None
    return f"the allocator {backend} keeps what a capture allocates inside of the graph: see PYTORCH_CUDA_ALLOC_CONF"


def captures_on(device: torch.device) -> CudaCaptures:
    """The captures of a device; new ones if nobody holds any.

    Raises CudaError where the allocator does not suit, StepError inside of a capture of the caller's.
    """
    if torch.cuda.is_current_stream_capturing():
        raise StepError(
            "the model was called inside of a CUDA graph capture, and captures its steps by itself: call it outside"
        )
    if (reason := why_unfit_allocator()) is not None:
        raise CudaError(reason)
    index = torch.cuda.current_device() if device.index is None else device.index
    found = _captures.get(index)
    if found is None:
        found = _captures[index] = CudaCaptures(index)
    return found


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Lets cuBLAS take its workspace from the pool of the capture, where it stays: from elsewhere it could be freed."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Casts of weights that the caller's autocast keeps are gone when it ends, and would be read on."""
    was = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was)
