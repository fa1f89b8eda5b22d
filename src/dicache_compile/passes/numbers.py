"""Python numbers that a call passes: constants of the graph, of which only Dynamo's guards still know.

Read while Dynamo compiles the graph and left on it, so that a refusal can say that the timestep is one of them.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import TracingContext

from . import values
from .input_names import name_of

_KEY = "dicache_numbers"


def note_numbers(gm: fx.GraphModule) -> None:
    """Notes the names of the numbers that were passed to what Dynamo is compiling, outside of modules."""
    try:
        gm.meta[_KEY] = tuple(_constants())
    except Exception:  # how Dynamo keeps them is its own affair, and this is for messages only
        gm.meta[_KEY] = ()


def noted_numbers(gm: fx.GraphModule) -> tuple[str, ...]:
    """Their names, where they were noted."""
    found: tuple[str, ...] = gm.meta.get(_KEY, ())
    return found


def _constants() -> list[str]:
    frame: Any = InstructionTranslator.current_tx().output.root_tx
    scope = {"L": frame.f_locals, "G": frame.f_globals}
    guards: Any = TracingContext.get().guards_context.dynamo_guards
    read = {guard.name: guard.originating_source for guard in guards if guard.create_fn_name() == "CONSTANT_MATCH"}
    passed = {text: source for text, source in read.items() if not values.is_module_source(source)}
    return [name_of(source) for text, source in passed.items() if _is_number(eval(text, scope))]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
