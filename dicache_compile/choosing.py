"""Chooses among the ways of a search by cached runs: what counts is the result, which the search does not see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .calibration.clusters import clusters, features
from .calibration.progress import Progress
from .calibration.quality import psnr, values
from .calibration.rehearsal import Rehearsal
from .calibration.search import Way, refit
from .config import DiCacheConfig
from .enable import Enabled, enable_cache
from .errors import CacheWarning
from .estimators import LearnedTable
from .schedules import Schedule
from .tracing import uncompiled

FEWEST = 3  # deep steps that are searched for
ROUNDS = 3  # of moves
MOVED = 2  # ways that are moved about
CLUSTERS = 16  # of channels that may have weights of their own


@dataclass(frozen=True, slots=True)
class Chosen:
    """A way that was tried."""

    deep: tuple[int, ...]
    config: DiCacheConfig
    psnr: float  # dB, the mean over the seeds that choose


class Chooser:
    """Tries ways on seeds that nothing was fitted to."""

    def __init__(
        self, model: nn.Module, run: Callable[[int], Any], rehearsal: Rehearsal, seeds: range, bar: Progress
    ) -> None:
        self._model, self._run, self._rehearsal, self._seeds, self._bar = model, run, rehearsal, seeds, bar
        self._of_channel = _of_channel(rehearsal)
        self._plain: dict[int, Tensor] = {}
        self._known: dict[tuple[int, ...], Chosen] = {}
        self._enabled: Enabled | None = None

    def close(self) -> None:
        """The model is called as before."""
        if self._enabled is not None:
            self._enabled.disable()
            self._enabled = None

    def best(self, ways: Sequence[Way]) -> Chosen:
        """Of ways with one number of deep steps the best, once its deep steps were moved about.

        It has weights for each cluster of channels where that is better.
        """
        tried = sorted((self._try(way) for way in ways), key=_rank)[:MOVED]
        for _ in range(ROUNDS):
            best = tried[0]
            near = sorted({deep for one in tried for deep in _moved(one.deep, self._rehearsal.num_steps)})
            moved = [self._known.get(deep) or self._try(refit(self._rehearsal, deep)) for deep in near]
            tried = sorted([*tried, *moved], key=_rank)[:1]
            if tried[0].deep == best.deep:
                break
        return min(tried[0], self._by_channel(tried[0]), key=_rank)

    def fewest(self, found: Mapping[int, Sequence[Way]], aim: float) -> Chosen:
        """The fewest deep steps that reach an aim, in dB; halves what is left.

        Raises ValueError where none of the ways does.
        """
        counts = [count for count in sorted(found) if count >= FEWEST]
        low, high, chosen, tried = 0, len(counts), None, list[Chosen]()
        while low < high:
            middle = (low + high) // 2
            one = self.best(found[counts[middle]])
            tried.append(one)
            if one.psnr >= aim:
                chosen, high = one, middle
            else:
                low = middle + 1
        if chosen is None:
            best = max(tried, key=lambda one: one.psnr)
            raise ValueError(
                f"psnr={aim}: {len(best.deep)} deep steps give {best.psnr:.1f} dB, and no more were searched for"
            )
        return chosen

    def psnrs(self, config: DiCacheConfig, seeds: range) -> tuple[float, ...]:
        """Of cached runs, dB, in the order of the seeds."""
        new = [seed for seed in seeds if seed not in self._plain]
        self._bar.phase("trying", len(new) + len(seeds))
        with uncompiled(self._model):
            self._plain |= {seed: self._result(seed) for seed in new}
        config = self._clustered(config)
        # Compiled once: other schedules and tables are told, and Dynamo compiles one model only a few times.
        if self._enabled is None:
            self._enabled = enable_cache(self._model, config, compile=False)
        else:
            self._enabled.configure(schedule=config.schedule, estimator=config.estimator)
        return tuple(psnr(self._result(seed), self._plain[seed]) for seed in seeds)

    def _by_channel(self, chosen: Chosen) -> Chosen:
        """The same schedule with weights for each cluster of channels; the same where there are no clusters."""
        if not self._of_channel:
            return chosen
        way = refit(replace(self._rehearsal, of_channel=self._of_channel), chosen.deep)
        config = config_of(way, self._rehearsal.num_steps, self._of_channel)
        found = self.psnrs(config, self._seeds)
        return Chosen(chosen.deep, config, sum(found) / len(found))

    def _clustered(self, config: DiCacheConfig) -> DiCacheConfig:
        """The same weights for each cluster: tables of one form take each other's place in what was compiled."""
        table = config.estimator
        assert isinstance(table, LearnedTable)
        if table.of_channel or not self._of_channel:
            return config
        count = max(self._of_channel) + 1
        residuals, inputs = (tuple(row * count for row in of) for of in (table.residuals, table.inputs))
        clustered = LearnedTable(table.deep_steps, residuals, inputs, self._of_channel)
        return replace(config, estimator=clustered)

    def _try(self, way: Way) -> Chosen:
        if way.deep not in self._known:
            config = config_of(way, self._rehearsal.num_steps)
            found = self.psnrs(config, self._seeds)
            self._known[way.deep] = Chosen(way.deep, config, sum(found) / len(found))
        return self._known[way.deep]

    def _result(self, seed: int) -> Tensor:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)  # that few steps run deep is known here
            found = values(self._run(seed))
        self._bar.tick()
        return found


def _of_channel(rehearsal: Rehearsal) -> tuple[int, ...]:
    """The cluster of each channel, numbered without gaps; () where there are too few, or values differ in theirs."""
    sizes = set(rehearsal.pieces.channels)
    count = min(CLUSTERS, min(sizes) // 4)
    if len(sizes) > 1 or count < 2:
        return ()
    found = clusters(features(rehearsal.residuals()), count).tolist()
    known = sorted(set(found))
    return tuple(known.index(one) for one in found) if len(known) > 1 else ()


def config_of(way: Way, num_steps: int, of_channel: tuple[int, ...] = ()) -> DiCacheConfig:
    """What a way is as a config."""
    rows = [row for row in way.rows if row is not None]
    width, back = (len(rows[0].residuals), len(rows[0].inputs)) if rows else (1, 1)
    table = LearnedTable(
        way.deep,
        tuple((0.0,) * width if row is None else row.residuals for row in way.rows),
        tuple((0.0,) * back if row is None else row.inputs for row in way.rows),
        of_channel if rows else (),
    )
    return DiCacheConfig(schedule=Schedule.steps(*way.deep), estimator=table, num_steps=num_steps)


def _rank(one: Chosen) -> tuple[float, tuple[int, ...]]:
    return -one.psnr, one.deep


def _moved(deep: tuple[int, ...], num_steps: int) -> Iterator[tuple[int, ...]]:
    """The schedules of which one deep step is one earlier or later; the first stays."""
    for place in range(1, len(deep)):
        for step in (deep[place] - 1, deep[place] + 1):
            if step < num_steps and step not in deep:
                yield (*deep[:place], step, *deep[place + 1 :])
