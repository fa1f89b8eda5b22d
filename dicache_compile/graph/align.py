"""Lays one sequence beside another."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def in_order(wanted: Sequence[int], given: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of places (in `wanted`, in `given`) that hold the same, in order."""
    blocks = SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks()
    return [(b.a + k, b.b + k) for b in blocks for k in range(b.size)]
