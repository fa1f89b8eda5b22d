"""Runs a workload plain and cached, in turn, and measures both."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn

from ..compiled import original
from ..enable import disable_cache
from ..errors import UncachedWarning
from ..summary import summary
from .answer import users
from .quality import Result, check_alike, psnr, result, span_of, ssim
from .settings import Asked

PLAIN, CACHED = "plain", "cached"


@dataclass(frozen=True, slots=True)
class Round:
    """One seed, run plain and cached."""

    seed: int
    plain_seconds: float
    cached_seconds: float
    deep: float  # steps of the cached run that ran the deep blocks; the mean of its streams, the sum of its models
    steps: float
    psnr: float  # dB, over the range of the plain result
    ssim: float | None  # None where the result is no picture


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds."""

    rounds: tuple[Round, ...]
    again_psnr: float  # dB of a plain run against another one of the same seed; infinite where they are equal


class NotCached(Exception):  # noqa: N818 - it is an answer
    """Nothing of the workload is cached; the text says why."""


class Both:
    """The models of a workload, compiled plain and with the cache, of which one is called."""

    def __init__(self, subject: Any, asked: Asked, compiled: bool) -> None:
        """Raises Mistake for what cannot have a cache."""
        enabled = asked.enable(subject, compiled)
        self.config = enabled.config
        self.models: list[nn.Module] = [original(model) for model in enabled.models.values()]
        self._calls = {CACHED: [model._compiled_call_impl for model in self.models]}
        for model in self.models:
            model._compiled_call_impl = None
            if compiled:
                model.compile(options=asked.inductors() or None)
        self._calls[PLAIN] = [model._compiled_call_impl for model in self.models]

    def use(self, which: str) -> None:
        for model, call in zip(self.models, self._calls[which], strict=True):
            model._compiled_call_impl = call

    def steps(self) -> tuple[float, float]:
        """(deep, all) steps of the last cached run. Raises NotCached with the reason where there are none."""
        deep, steps = 0.0, 0.0
        told = [summary(model) for model in self.models]
        for one in told:
            if one.generations:
                streams = one.generations[-1].streams.values()
                deep += mean(sum(step.deep for step in stream) for stream in streams)
                steps += mean(map(len, streams))
        if not steps:
            raise NotCached("; ".join(dict.fromkeys(filter(None, (one.reason for one in told)))))
        return deep, steps


@contextmanager
def both(subject: Any, asked: Asked, compiled: bool) -> Iterator[Both]:
    """Inside, a workload's models are compiled twice; afterwards they are as they were."""
    made = Both(subject, asked, compiled)
    try:
        yield made
    finally:
        made.use(CACHED)
        disable_cache(subject)


def measure(each: Both, generate: Callable[[int], Any], seeds: Sequence[int], done: Callable[[], object]) -> Measured:
    """A round for each seed, after one run of each that compiles; `done` is called after each run.

    Raises NotCached, and Mistake where sampling fails.
    """
    first, _ = _run(each, PLAIN, generate, seeds[0], done)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncachedWarning)  # NotCached tells of it
        _run(each, CACHED, generate, seeds[0], done)
    each.steps()  # before more is run for nothing
    found = [_round(each, generate, seed, plain_first=bool(number % 2), done=done) for number, seed in enumerate(seeds)]
    again = found[0][1]
    check_alike(again, first)
    return Measured(tuple(one for one, _ in found), psnr(again, first, span_of(first)))


def _round(
    each: Both, generate: Callable[[int], Any], seed: int, plain_first: bool, done: Callable[[], object]
) -> tuple[Round, Result]:
    """What is measured of a seed, and the plain result."""
    order = (PLAIN, CACHED) if plain_first else (CACHED, PLAIN)  # in turn, so that neither has the warmer machine
    runs = {which: _run(each, which, generate, seed, done) for which in order}
    (plain, plain_seconds), (cached, cached_seconds) = runs[PLAIN], runs[CACHED]
    check_alike(cached, plain)
    each.use(CACHED)
    span = span_of(plain)
    near = psnr(cached, plain, span), ssim(cached, plain, span)
    return Round(seed, plain_seconds, cached_seconds, *each.steps(), *near), plain


def _run(
    each: Both, which: str, generate: Callable[[int], Any], seed: int, done: Callable[[], object]
) -> tuple[Result, float]:
    each.use(which)
    with users(f"sampling ({which}, seed {seed})"), torch.no_grad():
        _wait()
        start = time.perf_counter()
        given = generate(seed)
        _wait()
        seconds = time.perf_counter() - start
    done()
    return result(given), seconds


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
