"""`dicache models`: which models published numbers are for, by method."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..integrations.families import PUBLISHED
from ..presets import METHODS
from ..published import names, published
from .answer import Answer, AsJson, Debug, tell


def models(json: AsJson = False, debug: Debug = False) -> None:
    """List the presets, and the models that published numbers are for.

    Any diffusion transformer can be cached; `dicache explain` tells how one is cut.
    """

    def work() -> Answer:
        of_models: dict[str, list[str]] = {name: list(published(name)["models"]) for name in names()}
        data: dict[str, Any] = {
            "presets": {one.name: {"call": one.call, "source": one.source} for one in METHODS.values()},
            "published": dict(PUBLISHED),
            "numbers": of_models,
        }
        table = Table("preset", "source", "published numbers for", box=None, pad_edge=False)
        for one in METHODS.values():
            classes = [kind for kind, name in PUBLISHED.items() if name == one.name]
            table.add_row(one.name, one.source, ", ".join([*classes, *of_models.get(one.name, [])]))
        return Answer(data, table)

    tell(work, json, debug)
