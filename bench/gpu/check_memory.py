"""Checks that memory comes back, and that the profiler survives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from dicache_compile import reset

from .device import MIB
from .kit import STEPS, Kit

PROFILED = 20
CYCLES = 3
TOKENS = 4096  # of the image, so that captures are large beside what CUDA's libraries keep for themselves
LEFT = 64 * MIB  # what these may keep: workspaces of matrix products, a segment that is still in part in use


def _cycle(kit: Kit, way: str) -> tuple[int, int]:
    """(bytes held after a generation, bytes still held once let go), both over what there was before."""
    kept: list[Any] = [] if way == "deletion" else [kit.model()]
    kit.device.settle()
    before = kit.device.memory()["reserved"]
    if way == "deletion":
        kept.append(kit.model())
    kept.append(kit.engine(kept[0], kit.device.best, lowering="eager"))
    with torch.no_grad():
        for arguments in kit.walk(STEPS):
            kept[1](**arguments)
    del arguments
    kit.device.settle()
    held = kit.device.memory()["reserved"] - before
    if way == "reset":
        reset(kept[1])
    elif way == "torch._dynamo.reset":
        torch._dynamo.reset()
    else:
        kept.clear()
    kit.device.settle()
    return held, kit.device.memory()["reserved"] - before


def gives_back(kit: Kit, way: str) -> tuple[bool, str]:
    if not kit.device.tiny:
        kit.case = replace(kit.case, latents=(1, TOKENS, *kit.case.latents[2:]))
    cycles = [_cycle(kit, way) for _ in range(CYCLES)]
    detail = "; ".join(f"{held / MIB:.0f} MiB held, {left / MIB:.0f} left" for held, left in cycles)
    # The first cycle also pays for what CUDA's libraries set up once.
    return all(left <= LEFT for _, left in cycles[1:]), detail


@torch.no_grad()
def survives_the_profiler(kit: Kit) -> tuple[bool, str]:
    compiled = kit.engine(kit.model(), kit.device.best, lowering="eager")
    for arguments in kit.walk(STEPS):
        compiled(**arguments)
    kit.device.synchronize()
    with torch.profiler.profile(activities=kit.device.profiled()) as profile:
        for arguments in kit.walk(PROFILED, seed=2):
            compiled(**arguments)
        kit.device.synchronize()
    seen = len(profile.events() or ())
    return seen > 0, f"{seen} events in {PROFILED} steps"


def memory(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    for way in ("reset", "torch._dynamo.reset", "deletion"):
        yield kit.device.best, f"{way} gives memory back", lambda way=way: gives_back(kit, way)


def profiler(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    yield kit.device.best, "E8 profiler", lambda: survives_the_profiler(kit)
