"""Tiny pipelines of diffusers, for the tests; nothing of the package is used here."""

from __future__ import annotations

from .entry import PipelineEntry


def pipelines() -> dict[str, PipelineEntry]:
    """All pipelines by name."""
    from . import flux, images, videos

    return {entry.name: entry for part in (flux, images, videos) for entry in part.ENTRIES}
