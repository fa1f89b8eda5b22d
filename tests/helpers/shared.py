"""Models of one class and one shape that many tests compile: Dynamo traces them once for all."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._dynamo import convert_frame
from torch._dynamo.eval_frame import OptimizedModule
from torch.utils._pytree import keystr, tree_flatten_with_path

from dicache_compile import dicache_backend
from dicache_compile.calls.session import release
from dicache_compile.graph.calling import note_call

LIMIT = 10_000  # of what Dynamo keeps for one function: more than there are tests
Options = Mapping[str, Any]

_calling = threading.local()
_steps: dict[fx.GraphModule, list[tuple[Options, Callable[..., Any]]]] = {}  # of one test
_ours = 0  # how often Dynamo compiled for a backend of this module
_test = 0


def compiled(model: nn.Module, options: Options) -> Any:
    """`torch.compile(model, backend=dicache_backend, fullgraph=True, options=options)` where the calls have one shape.

    The graph may be one that Dynamo made in an earlier test. Its guards choose it, and the backend compiles it anew.
    """
    call = torch.compile(model, backend=_Shared(dicache_backend, options=options), fullgraph=True, dynamic=False)
    call.__class__, call.__dict__["_options"] = _Call, options
    return call


def compile_in_place(model: nn.Module, options: Options) -> None:
    """`model.compile(backend=dicache_backend, fullgraph=True, options=options)`, as `compiled`."""
    model.compile(backend=_Shared(dicache_backend, options=options), fullgraph=True, dynamic=False)
    inner: Any = model._compiled_call_impl
    context = inner.__closure__[inner.__code__.co_freevars.index("self")].cell_contents
    known: dict[str, torch.Size] = {}

    def calling(*args: Any, **kwargs: Any) -> Any:
        assert context.callback is not None  # from this function's closure the package reads the config
        _check_shapes(known, (args, kwargs))
        _calling.options = options
        return inner(*args, **kwargs)

    model._compiled_call_impl = calling


def compiled_apart(model: nn.Module, options: Options, **how: Any) -> Any:
    """The same, traced for this test alone: what Dynamo makes of a second shape depends on what it made before."""
    return torch.compile(model, backend=_Apart(dicache_backend, options=options), fullgraph=True, **how)


@contextmanager
def traces_kept() -> Iterator[None]:
    """Around a test. Graphs that are shared outlast it, unless Dynamo compiled for others than this module, too."""
    global _test
    before = _compiles() - _ours
    with torch._dynamo.config.patch(recompile_limit=LIMIT, accumulated_recompile_limit=LIMIT):
        yield
    _test += 1
    _forget()
    if _compiles() - _ours == before:
        torch._dynamo.pgo.reset_code_state()
    else:
        torch._dynamo.reset()


def _compiles() -> int:
    return sum(convert_frame.FRAME_COMPILE_COUNTER.values())


def _forget() -> None:
    _steps.clear()
    release()


class _Backend(functools.partial[Any]):
    """A partial of the package's backend, from which a model's config is read."""

    reset = staticmethod(_forget)  # what `torch._dynamo.reset()` calls

    def __call__(self, gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        global _ours
        _ours += 1
        return self.step(gm, examples)

    def step(self, gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        step: Callable[..., Any] = super().__call__(gm, examples)
        return step


class _Apart(_Backend):
    """To Dynamo the same only with the same options in the same test."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.test = _test

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Apart) and (other.test, other.keywords) == (self.test, self.keywords)

    def __hash__(self) -> int:
        return hash((_Apart, self.test))


class _Shared(_Backend):
    """To Dynamo all the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shared)

    def __hash__(self) -> int:
        return hash(_Shared)

    def step(self, gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        note_call(gm)
        return lambda *inputs: _step(gm, inputs, _calling.options)(*inputs)


def _step(gm: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """What a graph is in this test under these options."""
    known = _steps.setdefault(gm, [])
    for others, step in known:
        if others == options:
            return step
    with mock.patch("dicache_compile.backend.note_call"):  # what was noted while Dynamo traced stays
        known.append((options, dicache_backend(gm, inputs, options=options)))
    return known[-1][1]


class _Call(OptimizedModule):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _check_shapes(self.__dict__.setdefault("_shapes", {}), (args, kwargs))
        _calling.options = self.__dict__["_options"]
        return super().__call__(*args, **kwargs)


def _check_shapes(known: dict[str, torch.Size], arguments: Any) -> None:
    for path, leaf in tree_flatten_with_path(arguments)[0]:
        if isinstance(leaf, Tensor):
            assert known.setdefault(keystr(path), leaf.shape) == leaf.shape, "with two shapes a model is compiled apart"
