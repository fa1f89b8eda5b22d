"""A lock by which processes on one device agree when it is busy with building, and who may time something on it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "device.lock"


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Inside, the device is used, and its times do not matter; others may do so too."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def timing(folder: Path) -> Iterator[None]:
    """Inside, nobody else builds or times."""
    with _locked(folder, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a") as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
