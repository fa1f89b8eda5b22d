"""The instances under `given/`: JSON for the constructor and the call, safetensors for the call's tensors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import nn

from .entry import Call

FOLDER = Path(__file__).parent / "given"


@cache
def description(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def build(name: str) -> nn.Module:
    """The model, at least four blocks deep where its class lets one choose."""
    found = description(name)
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, found["model"])(**_plain({**found["init"], **found["deeper"]}))
    return model.eval().requires_grad_(False)


def call(name: str) -> Call:
    """The keyword arguments of one forward call."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return {key: _argument(value, tensors) for key, value in description(name)["inputs"].items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _argument(leaf: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, value),) = leaf.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dtype":
        return getattr(torch, value.removeprefix("torch."))
    if kind == "dict":
        return {key: _argument(item, tensors) for key, item in value.items()}
    if kind in ("list", "tuple"):
        items = [_argument(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    return value
