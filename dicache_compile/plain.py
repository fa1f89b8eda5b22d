"""Values as JSON can hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from .rules import EstimateGate, Estimator, Gate
from .schedules import Schedule

_WRITTEN = (Gate, EstimateGate, Estimator, Schedule)


def plain(value: Any) -> Any:
    """A value in numbers, texts, lists and dicts, for `json.dumps(..., allow_nan=False)`.

    Dataclasses become dicts by field, tuples lists, a dtype its name: "float32". A number that is infinite or none is
    a text, as JSON has none: "inf", "-inf" or "nan", which `float` reads again. A gate, an estimator, a schedule, and
    whatever else there is, become the text of their code, their `repr`.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, *_WRITTEN)):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return repr(value)
