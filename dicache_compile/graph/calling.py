"""What is known of a call only while Dynamo compiles it. It is read then, and left on the graph.

Python numbers that the caller passes are constants of the graph, of which only Dynamo's guards still know. And a graph
may be of what somebody compiled, or of a function that it calls, where Dynamo gave the caller up.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew
from torch._guards import TracingContext

from . import values
from .input_names import name_of

_NUMBERS, _DIRECT, _LEAVES = "dicache_numbers", "dicache_direct", "dicache_leaves_no_trace"
_TORCH = torch.__file__.removesuffix("__init__.py")
_OWN = __file__.removesuffix("graph/calling.py")
_COMPILES, _CALLS = f"{_TORCH}_dynamo/convert_frame.py", f"{_TORCH}_dynamo/eval_frame.py"


def note_call(gm: fx.GraphModule) -> None:
    """Notes what can be known of the call that Dynamo is compiling."""
    try:
        gm.meta[_NUMBERS] = tuple(_numbers())
    except Exception:  # how Dynamo keeps them is its own affair, and this is for messages only
        gm.meta[_NUMBERS] = ()
    gm.meta[_DIRECT] = _is_direct()
    try:
        gm.meta[_LEAVES] = not _has_effects()
    except Exception:  # likewise: then a call is never left out
        gm.meta[_LEAVES] = False


def numbers_of(gm: fx.GraphModule) -> tuple[str, ...]:
    """The names of the Python numbers among the arguments."""
    found: tuple[str, ...] = gm.meta.get(_NUMBERS, ())
    return found


def is_direct(gm: fx.GraphModule) -> bool:
    """Whether the graph is of what was given to `torch.compile`, not of a function that is called in it."""
    return bool(gm.meta.get(_DIRECT, False))


def leaves_no_trace(gm: fx.GraphModule) -> bool:
    """Whether a call does nothing besides running its graph: no attribute, list or variable of before is changed."""
    return bool(gm.meta.get(_LEAVES, False))


def changes() -> tuple[str, ...]:
    """The names of what the call that Dynamo is compiling changes besides tensors: attributes, lists and variables of
    before. Dynamo does that once the graph has run.
    """
    output: Any = InstructionTranslator.current_tx().output
    effects, code = output.side_effects, output.root_tx.f_code
    # `kwargs` of `def call(*args, **kwargs)` is made for the call; a model may take values out of it.
    own = code.co_varnames[code.co_argcount + code.co_kwonlyargcount :][:2]

    def outlasts(item: Any) -> bool:
        made = item.is_immutable() or isinstance(item.mutation_type, (AttributeMutationNew, ValueMutationNew))
        return not made and not (isinstance(item.source, LocalSource) and item.source.local_name in own)

    lasting = [item for item in effects.id_to_variable.values() if outlasts(item)]
    return tuple(name_of(item.source) or "a variable" for item in lasting if effects.is_modified(item))


def _has_effects() -> bool:
    effects: Any = InstructionTranslator.current_tx().output.side_effects
    return bool(changes() or effects.tensor_hooks or effects.save_for_backward)


def _numbers() -> list[str]:
    frame: Any = InstructionTranslator.current_tx().output.root_tx
    scope = {"L": frame.f_locals, "G": frame.f_globals}
    guards: Any = TracingContext.get().guards_context.dynamo_guards
    read = {guard.name: guard.originating_source for guard in guards if guard.create_fn_name() == "CONSTANT_MATCH"}
    passed = {text: source for text, source in read.items() if not values.is_module_source(source)}
    return [name_of(source) for text, source in passed.items() if _is_number(eval(text, scope))]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_direct() -> bool:
    """Whether nothing but a module's `__call__` lies between the function that `torch.compile` made and its graph."""
    frame: Any = sys._getframe()
    files: list[str] = []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    # From the inside: what compiles, a module's `__call__`, and who called that.
    while files and files[0] != _COMPILES:
        files.pop(0)
    outside = itertools.dropwhile(lambda file: file != _CALLS and file.startswith((_TORCH, _OWN)), files)
    return next(outside, None) == _CALLS
