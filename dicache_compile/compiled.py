"""What torch.compile was told of a model: its own options, read before or after its first call."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from .config import DiCacheConfig
from .options import split_options

MARK = "_is_dicache_backend"  # an attribute of the backend, by which it is known without importing it
# Under which Dynamo's wrappers keep what they wrap; the second name is that of torch before 2.10.
_INNER = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")


def own_config(model: nn.Module) -> DiCacheConfig | None:
    """The config with which a model is compiled, by `torch.compile(model)` or in place; None where it is not.

    None, too, where the backend is called by a function of the user's. Raises what the options are refused with.
    """
    for backend in _backends(model):
        function: Any = getattr(backend, "compiler_fn", backend)
        keywords = dict(getattr(backend, "kwargs", {}))
        while isinstance(function, functools.partial):
            function, keywords = function.func, {**function.keywords, **keywords}
        if getattr(function, MARK, False):
            return split_options(keywords.get("options"), keywords.get("mode"))[0]
    return None


def original(model: nn.Module) -> nn.Module:
    """The module that torch.compile was given."""
    found: nn.Module = getattr(model, "_orig_mod", model)
    return found


def _backends(model: nn.Module) -> Iterator[Any]:
    """What Dynamo calls with a model's graphs."""
    contexts = [getattr(model, "dynamo_ctx", None)]
    in_place = getattr(original(model), "_compiled_call_impl", None)
    for cell in getattr(in_place, "__closure__", None) or ():
        try:
            contexts.append(cell.cell_contents)
        except ValueError:  # a variable that is not set yet
            continue
    for context in contexts:
        callback = getattr(context, "callback", None)
        while callback is not None:
            yield callback
            callback = next(filter(None, (getattr(callback, name, None) for name in _INNER)), None)
