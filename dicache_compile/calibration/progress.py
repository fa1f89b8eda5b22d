"""A progress bar, where tqdm is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """What a long piece of work tells of itself."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def phase(self, name: str, steps: int) -> None:
        """What comes next, and of how many steps."""
        if self._bar is not None:
            self._bar.set_description(name, refresh=False)
            self._bar.reset(total=steps)

    def tick(self) -> None:
        """One of them is done."""
        if self._bar is not None:
            self._bar.update()


@contextmanager
def progress_bar(name: str, wanted: bool) -> Iterator[Progress]:
    """Shows nothing where it is not wanted, or tqdm is not there."""
    bar = None
    if wanted:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            pass
        else:
            bar = tqdm(desc=name)
    try:
        yield Progress(bar)
    finally:
        if bar is not None:
            bar.close()
