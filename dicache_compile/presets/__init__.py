"""Presets: the fields of a config by the name of a published method."""

from __future__ import annotations

from typing import Any

from . import measured, nested, scripts, series, tables
from .method import METHODS, Fields, Method

__all__ = ["METHODS", "Fields", "Method", "fields_of", "parameters_of"]

_FILES = (scripts, series, measured, tables, nested)  # each adds its own to METHODS


def parameters_of(name: str) -> tuple[str, ...]:
    """What a preset takes besides fields of the config; nothing where there is none of that name."""
    return METHODS[name].parameters if name in METHODS else ()


def fields_of(name: str, given: dict[str, Any]) -> tuple[Fields, dict[str, Any]]:
    """(the fields of the method of that name with its parameters among `given`; what else is given).

    Raises ValueError for an unknown name, TypeError where a parameter without a default is missing.
    """
    if name not in METHODS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(map(repr, sorted(METHODS)))}")
    one = METHODS[name]
    own = {key: value for key, value in given.items() if key in one.parameters}
    try:
        fields = one.fields(**own)
    except TypeError as error:
        raise TypeError(f"{one.call}: {error}") from None
    return fields, {key: value for key, value in given.items() if key not in own}
