"""What a preset is: a function that gives the fields of a config, and the method that it is named after."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Fields: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True, slots=True)
class Method:
    """A published method as a preset. Its text is the docstring of `fields`."""

    name: str  # under which `DiCacheConfig.preset` has it
    source: str  # the paper, or the code where there is none
    fields: Callable[..., Fields]  # of the config, from the method's own parameters
    differs: str  # what is not as published; "": nothing

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.fields).parameters)

    @property
    def call(self) -> str:
        """As it is written, with the parameters' defaults: "preset('fora', interval=3)"."""
        given = (
            f"{name}=..." if one.default is inspect.Parameter.empty else f"{name}={one.default!r}"
            for name, one in inspect.signature(self.fields).parameters.items()
        )
        return f"preset({', '.join((repr(self.name), *given))})"


METHODS: dict[str, Method] = {}


def method(name: str, source: str, differs: str = "") -> Callable[[Callable[..., Fields]], Callable[..., Fields]]:
    """Makes a preset of a function."""

    def added(fields: Callable[..., Fields]) -> Callable[..., Fields]:
        METHODS[name] = Method(name, source, fields, differs)
        return fields

    return added
