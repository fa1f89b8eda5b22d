"""The facts of `tests/rules/published`, and the inputs that they were recorded on, formed again in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "rules" / "published"
SHAPE = (1, 6, 8)  # batch, tokens, channels: of every fixture that names no other


def fixture(name: str) -> dict[str, Any]:
    """What `tests/rules/published/<name>.json` holds."""
    facts: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return facts


def smooth(step: float, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """F(t) of the fixtures, float64 [1, tokens, channels]."""
    i, j = _grid(shape)
    return torch.sin(0.7 + 0.11 * i + 0.05 * step * (1 + 0.3 * j)) + 0.001 * step**2


def turning(step: float, steps: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """X(t) of the fixtures, float64 [1, tokens, channels], in a run of so many steps."""
    i, j = _grid(shape)
    turned = torch.cos(0.3 + 0.17 * i + 0.23 * j + 0.9 * (step / steps) ** 2 * (1 + 0.2 * i))
    return turned + 0.1 * math.sin(0.8 * step)


def first_block(x: Tensor) -> Tensor:
    """The fixtures' tiny model after one block: h."""
    return x + 0.3 * torch.sin(x)


def tiny_model(x: Tensor) -> Tensor:
    """The fixtures' tiny model after its three blocks: y."""
    h = first_block(x)
    u = h + 0.2 * torch.cos(1.3 * h)
    return u + 0.1 * u**2


def values(flat: list[float], shape: tuple[int, ...] = SHAPE) -> Tensor:
    """A recorded tensor, float64, in its shape again."""
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


def _grid(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    _, tokens, channels = shape
    i = torch.arange(tokens, dtype=torch.float64)[None, :, None]
    return i, torch.arange(channels, dtype=torch.float64)[None, None, :]
