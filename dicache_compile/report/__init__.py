"""A page about a model: how it is cut, and what it did."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ..files import checked_path, write_whole
from .data import sections, versions
from .page import page

__all__ = ["report"]


def report(model: Any, path: str | os.PathLike[str]) -> Path:
    """Writes one page of HTML about a compiled model (or its original), and returns its absolute path.

    The page has the model's cut, what each step of the last generations did, the state in memory, the config and the
    versions, with the numbers as CSV and JSON to download. It opens from disk and loads nothing. `model` may be a
    pipeline, or what `enable_cache` returned: then each of its compiled models has a section.

    Waits for the device. A file that is there is replaced at once. Raises TypeError if `model` is neither or `path` is
    no path, IsADirectoryError if `path` is a folder, FileNotFoundError if its folder does not exist.
    """
    found = checked_path(path, "page.html")
    write_whole(found, page(sections(model), versions(), datetime.now().astimezone()).encode())
    return found
