"""Several rules in one step, in plain PyTorch: each site decides for itself, one after another or inside of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.models import Model


@dataclass
class PlainSite:
    """The blocks from `first` to `last` under a rule of their own, and the sites inside of them."""

    first: int
    last: int
    threshold: float = 0.0
    probe_depth: int = 1
    gamma_range: tuple[float, float] = (1.0, 1.5)
    warmup: int = 3
    max_skips: int | None = 3
    schedule: tuple[int, ...] | None = None  # the steps that run; None: the threshold decides
    follows: bool = False  # reuses whenever the site before it does
    inner: Sequence[PlainSite] = ()
    names: tuple[str, ...] = ("x",)  # what the blocks carry
    h_prev: dict[str, Tensor] | None = None
    accumulated: float = 0.0
    skipped: int = 0
    anchors: list[dict[str, tuple[Tensor, Tensor]]] = field(default_factory=list)
    decisions: list[bool | None] = field(default_factory=list)  # whether it ran; None where it was not asked

    def run(self, model: Model, carried: dict[str, Any], index: int, before: bool) -> dict[str, Any]:
        x = {name: carried[name].clone() for name in self.names}
        carried = model.run(carried, self.first, self.first + self.probe_depth)
        h = {name: carried[name].clone() for name in self.names}
        reuse = self._reuses(h, index, before)
        self.decisions[index] = not reuse
        self.h_prev = h
        if not reuse:
            carried = run_through(model, carried, self.first + self.probe_depth, self.last, self.inner, index)
            of = {name: (carried[name] - x[name], h[name] - x[name]) for name in self.names}
            self.anchors.append(of)
            return carried
        return {**carried, **{name: self._estimate(name, x[name], h[name]) for name in self.names}}

    def _reuses(self, h: dict[str, Tensor], index: int, before: bool) -> bool:
        forced = index < self.warmup or not self.anchors
        if self.schedule is not None:
            return index not in self.schedule and bool(self.anchors)
        errors = [0.0]
        if self.h_prev is not None:
            errors = [((h[name] - old).abs().mean() / old.abs().mean()).item() for name, old in self.h_prev.items()]
        total = self.accumulated + max(errors)
        may = not forced and (self.max_skips is None or self.skipped < self.max_skips)
        reuse = may and (total < self.threshold or (self.follows and before))
        self.accumulated, self.skipped = (total, self.skipped + 1) if reuse else (0.0, 0)
        return reuse

    def _estimate(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        newest, probe = self.anchors[-1][name]
        if len(self.anchors) < 2 or self.schedule is not None:
            return x + newest
        older, older_probe = self.anchors[-2][name]
        low, high = self.gamma_range
        gap = (probe - older_probe).abs().mean().item()
        moved = ((h - x) - older_probe).abs().mean().item()
        gamma = min(max(moved / gap, low), high) if gap > 0 and math.isfinite(moved) else 1.0
        return x + older + gamma * (newest - older)


def run_through(
    model: Model, carried: dict[str, Any], start: int, end: int, sites: Sequence[PlainSite], index: int
) -> dict[str, Any]:
    """The blocks from `start` to `end`, each site of them under its rule."""
    reused = False
    for site in sites:
        carried = model.run(carried, start, site.first)
        carried = site.run(model, carried, index, reused)
        reused, start = not site.decisions[index], site.last
    return model.run(carried, start, end)


@dataclass
class PlainSites:
    """One generation of a model under several rules; call it once for each step."""

    model: Model
    sites: Sequence[PlainSite]
    index: int = 0

    @torch.no_grad()
    def __call__(self, *args: Any) -> Tensor:
        for site in self.all():
            site.decisions.append(None)
        carried = self.model.enter(*args)
        carried = run_through(self.model, carried, 0, self.model.depth, self.sites, self.index)
        self.index += 1
        return self.model.leave(carried)

    def all(self) -> list[PlainSite]:
        """In the order in which they begin."""
        return [one for site in self.sites for one in (site, *site.inner)]
