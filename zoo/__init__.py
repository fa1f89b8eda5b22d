"""Tiny instances of diffusion transformers, for the tests and `docs/models.md`; nothing of the package is used here."""

from __future__ import annotations

from .entry import Entry


def entries() -> dict[str, Entry]:
    """All models by name: those under `given/`, more of diffusers, and those that are not of diffusers."""
    from . import given_entries, more_a, more_b, wild

    parts = (given_entries.ENTRIES, more_a.ENTRIES, more_b.ENTRIES, wild.ENTRIES)
    return {entry.name: entry for part in parts for entry in part}
