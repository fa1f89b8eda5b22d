"""Changes what containers hold, whatever they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with what its containers and dataclasses hold changed."""
    if isinstance(value, Mapping):
        return {key: map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: map_leaves(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return type(value)(**parts)
    return change(value)
