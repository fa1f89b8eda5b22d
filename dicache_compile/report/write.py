"""Writes a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The place of a file to write, absolute. Raises TypeError, IsADirectoryError or FileNotFoundError otherwise."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the path of the page to write, got {type(path).__name__}")
    text = os.fspath(path)
    if not text or isinstance(text, bytes):
        raise ValueError(f"path: expected the path of the page to write, got {text!r}")
    found = Path(os.path.realpath(Path(text).expanduser()))  # of a link what it leads to
    if found.is_dir():
        raise IsADirectoryError(f"path: {found} is a folder: name a file in it, as in {found / 'page.html'}")
    if not found.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {found.parent}: make it first")
    return found


def write_whole(path: Path, text: str) -> None:
    """Puts a new file in the place of what is there; until it is complete nobody sees anything of it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
