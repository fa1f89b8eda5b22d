"""Notices that a model is changed: its modules are watched at the doors by which models are changed.

While a watch is open, methods of `torch.nn.Module` that change one, and those of a model's own classes that are known
to, tell of it and then do what they did. While Dynamo compiles they are as they were, as it traces them.

Not noticed: what is put into a module past its attributes (`module._parameters["weight"] = ...`), a parameter whose
`.data` is replaced, and what `contents` does not notice, either.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch._dynamo.callback import callback_handler
from torch.nn.utils import _named_member_accessor
from torch.utils.hooks import RemovableHandle

from .contents import Contents, contents

# Attributes, parameters, buffers and submodules, `train`, `to`, `load_state_dict`, and hooks.
_OF_MODULES = (
    *("__setattr__", "__delattr__", "_apply", "load_state_dict"),
    *("register_parameter", "register_buffer", "add_module", "register_module"),
    *("register_forward_hook", "register_forward_pre_hook", "requires_grad_"),
)
# What changes more than attributes of a module: of PyTorch's lists and dicts of modules, of diffusers' models, and of
# peft's layers and models.
_OF_CLASSES = {
    *(method.__name__ for method in (nn.ModuleList.insert, nn.ModuleList.__delitem__, nn.ModuleDict.clear)),
    *("set_attn_processor", "set_default_attn_processor", "set_attention_backend", "reset_attention_backend"),
    *("load_lora_adapter", "unload_lora", "fuse_lora", "unfuse_lora", "enable_lora_hotswap"),
    *("add_adapter", "delete_adapter", "delete_adapters", "set_adapter", "set_adapters", "update_layer"),
    *("enable_adapters", "disable_adapters", "enable_adapter_layers", "disable_adapter_layers"),
    *("enable_lora", "disable_lora", "merge", "unmerge", "merge_adapter", "unmerge_adapter"),
    *("set_scale", "scale_layer", "unscale_layer"),
    *("fuse_qkv_projections", "unfuse_qkv_projections", "enable_cache", "disable_cache"),
}
# Of `torch.func.functional_call`, which puts other tensors past a module's attributes.
_FUNCTIONS = ("set_tensor", "swap_tensor", "swap_submodule")
_Place = tuple[Any, str]  # (a class or a module of Python, a name in it)

_lock = threading.RLock()
_watched: dict[int, list[Watch]] = {}  # by the id of a module, which its watch keeps alive
_open: dict[_Place, _Door] = {}
_compiling = False


@dataclass(slots=True, eq=False)
class Watch:
    """Whether a model has changed since it was opened."""

    modules: Sequence[nn.Module]
    held: Contents | None
    told: str | None = None  # of the first change
    places: tuple[_Place, ...] = ()

    def change(self) -> str | None:
        """What has changed of the model since this was opened, in words."""
        if self.told is None and self.held is not None and not self.held.are_same():
            self.told = "a list, dict or object that it holds"
        return self.told

    def close(self) -> None:
        """Ends it. Does nothing the second time."""
        with _lock:
            for module in self.modules:
                watches = _watched.get(id(module), [])
                if self in watches:
                    watches.remove(self)
                if not watches:
                    _watched.pop(id(module), None)
            for place in self.places:
                _leave(place)
            self.modules, self.held, self.places = (), None, ()


@dataclass(slots=True)
class _Door:
    """A method that tells of its calls."""

    original: Callable[..., Any]
    telling: Callable[..., Any]
    watches: int = 1


def watch(model: nn.Module) -> Watch:
    """Opens a watch on a model, all of its modules, and what they hold."""
    held, modules = contents(model)
    opened = Watch(modules, held)
    with _lock:
        for module in modules:
            _watched.setdefault(id(module), []).append(opened)
        opened.places = tuple(_places(modules))
        for place in opened.places:
            _enter(place)
    return opened


def _places(modules: Sequence[nn.Module]) -> Iterator[_Place]:
    yield RemovableHandle, "remove"  # of a hook, which is of no module
    yield from ((_named_member_accessor, name) for name in _FUNCTIONS)
    yield from ((nn.Module, name) for name in _OF_MODULES)
    kinds = dict.fromkeys(base for kind in dict.fromkeys(map(type, modules)) for base in kind.__mro__)
    for kind in kinds:
        if kind is not nn.Module:
            own = (name for name in vars(kind) if name in _OF_CLASSES)
            yield from ((kind, name) for name in own if isinstance(vars(kind)[name], types.FunctionType))


def _enter(place: _Place) -> None:
    if place in _open:
        _open[place].watches += 1
        return
    if not _open:
        callback_handler.register_start_callback(_compilation_starts)
        callback_handler.register_end_callback(_compilation_ends)
    kind, name = place
    original = vars(kind)[name]
    _open[place] = door = _Door(original, _telling(original))
    if not _compiling:
        setattr(kind, name, door.telling)


def _leave(place: _Place) -> None:
    door = _open[place]
    door.watches -= 1
    if door.watches:
        return
    del _open[place]
    _put_back(place, door)
    if not _open:
        # `torch._dynamo.reset()` has forgotten them.
        with suppress(ValueError):
            callback_handler.remove_start_callback(_compilation_starts)
        with suppress(ValueError):
            callback_handler.remove_end_callback(_compilation_ends)


def _put_back(place: _Place, door: _Door) -> None:
    kind, name = place
    if vars(kind).get(name) is door.telling:  # and not what somebody put in its place meanwhile
        setattr(kind, name, door.original)


def _compilation_starts(_: object) -> None:
    global _compiling
    with _lock:
        _compiling = True
        for place, door in _open.items():
            _put_back(place, door)


def _compilation_ends(_: object) -> None:
    global _compiling
    with _lock:
        _compiling = False
        for (kind, name), door in _open.items():
            if vars(kind).get(name) is door.original:
                setattr(kind, name, door.telling)


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def telling(self: Any, *args: Any, **kwargs: Any) -> Any:
        for one in _watches_of(self):
            one.told = one.told or f"{method.__name__} of a {type(self).__name__}"
        return method(self, *args, **kwargs)

    return telling


def _watches_of(changed: object) -> Sequence[Watch]:
    """Those on a module, or on a module that has the hook of this handle."""
    if not isinstance(changed, RemovableHandle):
        return _watched.get(id(changed), ())
    hooks = changed.hooks_dict_ref()
    everyone = {id(one): one for watches in _watched.values() for one in watches}.values()
    return [one for one in everyone if any(hooks is own for module in one.modules for own in _hooks_of(module))]


def _hooks_of(module: nn.Module) -> tuple[object, object]:
    return module._forward_hooks, module._forward_pre_hooks
