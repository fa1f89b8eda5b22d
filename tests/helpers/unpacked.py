"""Packages whose graphs are kept uncompiled beside them: AOTInductor takes a minute for the smallest model."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import fx

from dicache_compile.packages import aot


def kept(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, fx.GraphModule]:
    """From here on packages have these graphs, by the texts that stand in the place of their libraries."""
    graphs: dict[str, fx.GraphModule] = {}
    numbers = itertools.count()

    def compiled(gm: fx.GraphModule, examples: Sequence[object], settings: Mapping[str, Any]) -> list[str]:
        library = folder / f"{next(numbers)}.so"
        library.write_text(str(library))
        graphs[str(library)] = gm
        return [str(library)]

    def opened(path: str, name: str) -> Callable[..., Any]:
        return graphs[library_of(path, name)].forward

    monkeypatch.setattr(aot, "compiled", compiled)
    monkeypatch.setattr(aot, "opened", opened)
    return graphs


def library_of(path: str | Path, name: str) -> str:
    """The text that stands in the place of a library."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = [entry for entry in archive.namelist() if f"/aotinductor/{name}/" in entry]
        return archive.read(entry).decode()
