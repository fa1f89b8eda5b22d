"""A stand-in for CUDA captures: records operations on CPU tensors and runs them again, over the same memory.

What a capture promises is held as a GPU would: nothing is computed while it is made; a launch reads and writes the
addresses that were recorded, so that an input that was not copied in is seen as stale; nothing may be read on the host.
What captures used in an earlier launch is overwritten before the next one, since they share their memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dicache_compile.engines.cuda.captures import Choice, Part, _no_autocast_cache

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]


class Tape(TorchDispatchMode):
    """Records the operations of a capture. Those that write are not run; the others are, to have what to point at."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pointed = tree_map_only(Tensor, Tensor.detach, (args, kwargs))  # at the memory, not at whoever holds it
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype != torch.float64:
            # Dynamo's floats are tensors of that dtype, and on the host.
            raise RuntimeError("operation not permitted when stream is capturing")
        if func._schema.is_mutable and func._schema.returns[0].alias_info is not None:
            self.calls.append((func, *pointed, []))
            return args[0]
        if func._schema.is_mutable:
            apart = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
            result = func(*apart[0], **apart[1])
        else:
            result = func(*args, **kwargs)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given]
        if new:  # a view is only a way to look at memory
            self.calls.append((func, *pointed, [t.detach() for t in tree_leaves(result) if isinstance(t, Tensor)]))
        return result

    def own(self) -> list[Tensor]:
        return [tensor for *_, results in self.calls for tensor in results]

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for old, new in zip(results, again, strict=False):
                old.copy_(new)


class RecordingDevice:
    """Has the methods of `engines.recording.Captures`, and a list of what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.tapes: weakref.WeakSet[Tape] = weakref.WeakSet()
        self.refuses: dict[str, str] = {}  # by method: what its error says
        self.abandoned = self.settled = 0
        self.turns = 0

    @contextmanager
    def turn(self) -> Iterator[int]:
        assert self.turns == 0, "launches overlap"
        self.turns += 1
        try:
            yield 0
        finally:
            self.turns -= 1

    def warm_up(self, run: Callable[[], Any]) -> Any:
        self._note("warm_up")
        with _no_autocast_cache():
            return run()

    def capture(self, run: Callable[[], Any]) -> tuple[Tape, Any]:
        self._note("capture")
        tape = Tape()
        with _no_autocast_cache(), tape:
            result = run()
        self.tapes.add(tape)
        return tape, result

    def branch_on_device(self, parts: Sequence[Part]) -> Callable[[], None]:
        self._note("branch_on_device")
        return lambda: self._launch("launch", parts)

    def branch_on_host(self, parts: Sequence[Part]) -> Callable[[], None]:
        self._note("branch_on_host")
        return lambda: self._launch("two launches", parts)

    def settle(self) -> None:
        self.settled += 1

    def abandon(self) -> None:
        self.abandoned += 1

    @torch.inference_mode()  # a device does not ask in which mode a tensor was made
    def _launch(self, what: str, parts: Sequence[Part]) -> None:
        self._note(what)
        for tape in self.tapes:
            for tensor in tape.own():
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
        _replay(parts)

    def _note(self, what: str) -> None:
        self.done.append(what)
        if what in self.refuses:
            raise RuntimeError(self.refuses[what])


def _replay(parts: Sequence[Part]) -> None:
    for part in parts:
        if isinstance(part, Choice):
            _replay(part.reused if part.reuse.item() else part.deep)
        else:
            part.replay()
