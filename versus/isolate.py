"""Lets many compiled systems share a process, each compiled as if it were alone; and reads what diffusers' hooks hold.

Dynamo keeps its graphs, and its decision to give up on a frame, with the frame's code, which all models of a class and
all hooks of a kind share. Caches break the graph in the loop over the blocks, at which Dynamo gives the model's forward
up: every later compile of that class would run it eagerly, even with `fullgraph`, and not say so. A region of its own
(`isolate_recompiles`) keeps its own graphs and decisions; it also looks among the common ones, so that everything here
is best compiled here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ROOM = 256  # graphs of one frame: a cache needs one for each block, state and stream, which is more than the default 8
ROOM_OF_ALL = 1 << 14  # the same over all regions; beyond it Dynamo would quietly run eagerly


def compile_alone(target: Any, **options: Any) -> Any:
    """`torch.compile(target)` in a region of its own.

    What Dynamo has learnt about sizes that change is dropped first: it is kept by file and line, so another model's
    sizes would make these dynamic. Hence each system is to be called, and so compiled, before the next is installed.
    """
    torch._dynamo.config.accumulated_recompile_limit = ROOM_OF_ALL
    torch._dynamo.pgo.reset_code_state()
    return torch.compile(target, isolate_recompiles=True, recompile_limit=ROOM, **options)


def compile_blocks_alone(model: nn.Module, **options: Any) -> None:
    """`model.compile_repeated_blocks()` below of any hooks, which are to be put in afterwards.

    One region for each class of block, so that its blocks share their graph.
    """
    compiled: dict[type, Any] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in model._repeated_blocks:  # type: ignore[operator]
            if kind not in compiled:
                compiled[kind] = compile_alone(kind.forward, **options)
            module.forward = types.MethodType(compiled[kind], module)


def hooks(model: nn.Module, kind: type) -> list[Any]:
    """The model's hooks of a class, in the order of its modules."""
    registries = [module._diffusers_hook for module in model.modules() if hasattr(module, "_diffusers_hook")]
    return [hook for registry in registries for hook in registry.hooks.values() if isinstance(hook, kind)]


def held_bytes(states: Iterable[Any]) -> int:
    """Bytes of the storages that states refer to, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(list(states))}
    return sum(storages.values())


def states(managed: Iterable[Any]) -> list[Any]:
    """What hooks' state managers hold for all streams."""
    managers = {id(hook.state_manager): hook.state_manager for hook in managed}
    return [state for manager in managers.values() for state in manager._state_cache.values()]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.dtype, torch.device)):
        yield from _tensors(vars(value))


class Held:
    """The most that states hold between steps, looked at once: at the last step of the first generation."""

    def __init__(self, states: Callable[[], Iterable[Any]], last: int) -> None:
        self._states, self._last, self.bytes = states, last, 0

    def before(self, step: int) -> None:
        if step == self._last and not self.bytes:
            self.bytes = held_bytes(self._states())
