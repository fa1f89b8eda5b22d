"""Runs a group of checks; each leaves a row, whatever happens to it."""

from __future__ import annotations

import traceback

from . import check_capture, check_equality, check_memory
from .device import Device
from .kit import Kit
from .rows import Writer

GROUPS = {
    "equality": check_equality.equality,
    "running": check_equality.running,
    "changes": check_equality.changes,
    "expandable": check_equality.expandable,
    "memory": check_memory.memory,
    "profiler": check_memory.profiler,
    "capture": check_capture.capture,
}


def check(group: str, writer: Writer, device: Device) -> None:
    kit = Kit(device)
    for engine, name, run in GROUPS[group](kit):
        try:
            passed, detail = run()
        except Exception as error:
            traceback.print_exc()
            passed, detail = False, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        writer.row("checks", engine, name, None, passed=passed, detail=detail)
        device.settle()
