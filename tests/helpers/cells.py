"""Cases of a test that has several things to vary."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def cells(names: str, *axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Every combination of these values. The common ones differ in one place from the first of each; `make test` runs
    them, and `make test-all` the others too.
    """
    return _cells(names, axes, most=1)


def first(names: str, *axes: Sequence[Any]) -> pytest.MarkDecorator:
    """The same, where each case is compiled for long: only the first of each value is common."""
    return _cells(names, axes, most=0)


def _cells(names: str, axes: Sequence[Sequence[Any]], most: int) -> pytest.MarkDecorator:
    """`most`: places in which a common combination differs from the first one."""
    params = []
    for values in itertools.product(*axes):
        varied = sum(value != axis[0] for value, axis in zip(values, axes, strict=True))
        params.append(pytest.param(*values, marks=[pytest.mark.exhaustive] if varied > most else []))
    return pytest.mark.parametrize(names, params)
