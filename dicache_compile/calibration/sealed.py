"""What was measured, as a file of JSON that tells whether it is whole and as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import write_whole

_SEAL = "sha256"


def write(path: Path, about: Mapping[str, Any]) -> None:
    """Writes it whole or not at all, with a checksum."""
    write_whole(path, (json.dumps({**about, _SEAL: _digest(about)}, indent=1) + "\n").encode())


def read(path: Path, version: int, expected: str) -> dict[str, Any]:
    """What `write` wrote of that version, without it. Raises ValueError, with what was `expected`, for all else."""
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8; of what is nested too deep
        raise ValueError(f"{path}: {expected}, and found what is no JSON, or not whole: {error}") from error
    if not isinstance(told, dict) or told.get("version") != version:
        raise ValueError(f"{path}: {expected}")
    seal = told.pop(_SEAL, None)
    if seal != _digest(told):
        raise ValueError(f"{path} was changed after it was written, or is not whole: {expected}")
    del told["version"]
    return told


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Around what makes a value of what was read: raises ValueError where that cannot be made of it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: {expected}, and found other content ({type(error).__name__}: {error})") from error


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(about: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(about, sort_keys=True).encode())
