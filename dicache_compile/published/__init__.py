"""Named numbers that published caches come with: polynomials, ratios, thresholds, ranges of blocks, windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Of the methods that there are numbers of."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def numbers_of(name: str, model: str) -> dict[str, Any]:
    """Those of one model, as `published(name)["models"]` has them. Raises ValueError where there are none of it."""
    models = published(name)["models"]
    if model not in models:
        raise ValueError(f"model={model!r}: expected one of {', '.join(models)}")
    found: dict[str, Any] = models[model]
    return found


def published(name: str) -> dict[str, Any]:
    """What a published cache comes with, for each model that its authors measured.

    Args:
        name: of the method, as `"teacache"` or `"magcache"`.

    Returns:
        `method`, `source` (the repository and its commit), `paper`, `about` (how the numbers are read) and `models`:
        by the name of a model its numbers, with the file and the line that they are from as `at`.

    Raises:
        ValueError: there is nothing of this name. The message says which names there are.
    """
    if name not in names():
        raise ValueError(f"No numbers are published here as {name!r}; there are {', '.join(names())}.")
    numbers: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return numbers
