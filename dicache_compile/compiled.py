"""What torch.compile was told of a model: its own options, read before or after its first call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch._dynamo import config as dynamo_config

from .config import DiCacheConfig
from .options import split_options

NAME = "dicache"  # by which torch.compile finds the backend
MARK = "_is_dicache_backend"  # an attribute of the backend, by which it is known without importing it
_captured = 0  # how often `capture_all` was called in this process
# Under which Dynamo's wrappers keep what they wrap; the second name is that of torch before 2.10.
_INNER = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")


def own_config(model: nn.Module) -> DiCacheConfig | None:
    """The config with which a model is compiled, by `torch.compile(model)` or in place; None where it is not.

    None, too, where the backend is called by a function of the user's. Raises what the options are refused with.
    """
    for backend in _backends(model):
        function, keywords = _unwrapped(getattr(backend, "compiler_fn", backend))
        if getattr(function, MARK, False):
            keywords = {**keywords, **getattr(backend, "kwargs", {})}
            return split_options(keywords.get("options"), keywords.get("mode"))[0]
    return None


def is_ours(backend: object) -> bool:
    """Whether what `torch.compile` is given as its backend is ours, by its name or itself."""
    return backend == NAME or bool(getattr(_unwrapped(backend)[0], MARK, False))


def _unwrapped(function: Any) -> tuple[Any, dict[str, Any]]:
    """What partials are of, and their keywords."""
    keywords: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        function, keywords = function.func, {**function.keywords, **keywords}
    return function, keywords


def original(model: nn.Module) -> nn.Module:
    """The module that torch.compile was given."""
    found: nn.Module = getattr(model, "_orig_mod", model)
    return found


def capture_all(model: nn.Module) -> None:
    """Has Dynamo keep results whose shapes their values decide in a model's graph, as it does under `fullgraph=True`.

    Else it breaks the graph there, as in each block of Mochi. Only while this model compiles: no other one is touched,
    and a call costs nothing. Where this version of torch is built in another way, nothing is changed. Numbers that are
    read of tensors still break the graph: QwenImage 2.1 branches on some, for which a graph would have to choose.

    Hooks that are registered later are seen, which Dynamo else leaves out.

    Dynamo compiles one function so many times and then runs it uncompiled. All models that are compiled in place are
    one function to it: with each one here there is room for that many more.
    """
    global _captured
    _captured += 1
    for context in _contexts(model):
        callback = getattr(context, "callback", None)
        name = next((name for name in _INNER if name in getattr(callback, "__dict__", {})), None)
        if name is not None:
            setattr(callback, name, _Capturing(getattr(callback, name)))


class _Capturing:
    """What compiles a frame, with a setting of Dynamo in force while it does."""

    def __init__(self, convert: Callable[..., Any]) -> None:
        self._convert = convert
        # Dynamo's C code looks for this on each frame that it meets, and would meet `__getattr__`: a plain attribute.
        for name in _INNER:
            setattr(self, name, convert)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._convert, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        limit = dynamo_config.recompile_limit * _captured
        most = max(limit, dynamo_config.accumulated_recompile_limit)
        settings = {
            "capture_dynamic_output_shape_ops": True,
            "skip_nnmodule_hook_guards": False,
            "recompile_limit": limit,
            "accumulated_recompile_limit": most,
        }
        with dynamo_config.patch(settings):
            return self._convert(*args, **kwargs)


def _backends(model: nn.Module) -> Iterator[Any]:
    """What Dynamo calls with a model's graphs."""
    for context in _contexts(model):
        callback = getattr(context, "callback", None)
        while callback is not None:
            yield callback
            callback = next(filter(None, (getattr(callback, name, None) for name in _INNER)), None)


def _contexts(model: nn.Module) -> list[Any]:
    """What `torch.compile` made of a model, and other values beside it."""
    contexts = [getattr(model, "dynamo_ctx", None)]
    in_place: Any = getattr(original(model), "_compiled_call_impl", None)
    while hasattr(in_place, "inner"):  # of an armed one, or of one that takes a batch of guidance apart
        in_place = in_place.inner
    for cell in getattr(in_place, "__closure__", None) or ():
        try:
            contexts.append(cell.cell_contents)
        except ValueError:  # a variable that is not set yet
            continue
    return contexts
