"""Sorts the `options` of torch.compile: ours make the config, Inductor's are passed on, anything else is an error."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch._inductor

from .config import DiCacheConfig

# Inductor's CUDA graphs would wrap each piece alone; the engines capture the whole step.
_NO_CUDA_GRAPHS = {"triton.cudagraphs": False}


def split_options(
    options: Mapping[str, Any] | DiCacheConfig | None, mode: str | None
) -> tuple[DiCacheConfig, dict[str, Any]]:
    """(the config, Inductor's settings for a piece). A config stands for its `options()`.

    Raises ValueError for a key that is neither ours nor Inductor's, naming the nearest that is, and for an unknown
    mode.
    """
    if isinstance(options, DiCacheConfig):
        options = options.options()
    options = {str(key).replace("-", "_"): value for key, value in (options or {}).items()}  # as torch.compile does
    ours = {field.name for field in dataclasses.fields(DiCacheConfig)}
    theirs = set(torch._inductor.list_options())
    for key in options:
        if key not in ours and key not in theirs:
            near = difflib.get_close_matches(str(key), sorted(ours | theirs), n=1, cutoff=0.0)
            raise ValueError(
                f"unknown option {key!r}; the nearest is {near[0]!r}. Valid are the fields of DiCacheConfig "
                "and the options of Inductor (torch._inductor.list_options())"
            )
    config = DiCacheConfig(**{key: value for key, value in options.items() if key in ours})
    settings = {**mode_options(mode), **{key: value for key, value in options.items() if key not in ours}}
    return config, settings


def mode_options(mode: str | None) -> dict[str, Any]:
    """What a mode of torch.compile sets. Raises ValueError for an unknown one."""
    known = torch._inductor.list_mode_options()
    if mode is not None and mode not in known:
        raise ValueError(f"unknown mode {mode!r}: expected one of {', '.join(map(repr, known))}")
    return dict(torch._inductor.list_mode_options(mode)) if mode is not None else {}


def without_cuda_graphs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a piece of a cut graph."""
    return {**settings, **_NO_CUDA_GRAPHS}
