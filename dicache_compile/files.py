"""Writes a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def checked_path(path: str | os.PathLike[str], like: str) -> Path:
    """The place of a file to write, absolute; `like` is a name for an example.

    Raises TypeError or ValueError for what is no path, IsADirectoryError, FileNotFoundError where its folder is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the path of the file to write, got {type(path).__name__}")
    text = os.fspath(path)
    if not text or isinstance(text, bytes):
        raise ValueError(f"path: expected the path of the file to write, got {text!r}")
    found = Path(os.path.realpath(Path(text).expanduser()))  # of a link what it leads to
    if found.is_dir():
        raise IsADirectoryError(f"path: {found} is a folder: name a file in it, as in {found / like}")
    if not found.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {found.parent}: make it first")
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Puts a new file in the place of what is there; until it is complete nobody sees anything of it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
