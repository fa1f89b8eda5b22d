"""How many of the compiled parts PyTorch's caches do not hold, and so cannot hand to the next process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._dynamo.utils import counters

_HELD = ("autograd_cache_hit", "autograd_cache_saved")
_lost = 0


@contextmanager
def watched() -> Iterator[None]:
    """Around one compilation."""
    global _lost
    before = _held()
    yield
    _lost += _held() == before


def not_kept() -> int:
    """Of all parts that were compiled in this process."""
    return _lost


def _held() -> int:
    return sum(counters["aot_autograd"][name] for name in _HELD)
