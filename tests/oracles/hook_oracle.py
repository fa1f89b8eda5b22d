"""DiCache in plain PyTorch around any model of the zoo, with forward hooks on the blocks that its entry names.

Takes nothing of the package. The model runs in full on every step; where the cache would reuse, the last block's result
is replaced by the estimate before the rest of the model sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import At, Call, Entry


class HookOracle:
    """One generation of one stream of calls; runs deep where it is told to."""

    def __init__(self, model: nn.Module, entry: Entry, gamma_range: tuple[float, float] = (1.0, 1.5)) -> None:
        self.model, self.entry, self.gamma_range = model, entry, gamma_range
        count = len(entry.streams)
        self.previous: list[Tensor] | None = None  # h of the step before
        self.anchors: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(count)]  # (residual, probe residual)
        self.error: float | None = None  # of the last step
        self.shapes: list[tuple[int, ...]] = []  # of the streams

    @torch.no_grad()
    def __call__(self, call: Call, deep: bool) -> Any:
        """The model's result, with its deep blocks or with their stand-in."""
        found: dict[str, list[Tensor]] = {}
        lists = [self.model.get_submodule(path) for path in self.entry.trunk]
        first, probe, last = lists[0][0], lists[1 if self.entry.paired else 0][0], lists[-1][-1]  # type: ignore[index]

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found["x"] = [_read(s.x, args, kwargs) for s in self.entry.streams]

        def leave_probe(_: nn.Module, args: Any, result: Any) -> None:
            found["h"] = [_read(s.h, result) for s in self.entry.streams]

        def leave(_: nn.Module, args: Any, result: Any) -> Any:
            for place, stream in enumerate(self.entry.streams):
                x, h = found["x"][place], found["h"][place]
                if deep:
                    y = _read(stream.y, result)
                    self.anchors[place].append((y.float() - x.float(), h.float() - x.float()))
                else:
                    result = _written(stream.y, result, self._estimate(place, x, h))
            return result

        handles = [
            first.register_forward_pre_hook(enter, with_kwargs=True),
            probe.register_forward_hook(leave_probe),
            last.register_forward_hook(leave),
        ]
        try:
            result = self.model(**call)
        finally:
            for handle in handles:
                handle.remove()
        now = [h.float() for h in found["h"]]
        if self.previous is not None:
            pairs = zip(now, self.previous, strict=True)
            self.error = max(float((h - old).abs().mean() / old.abs().mean()) for h, old in pairs)
        self.previous, self.shapes = now, [tuple(x.shape) for x in found["x"]]
        return result

    def _estimate(self, place: int, x: Tensor, h: Tensor) -> Tensor:
        newest, newest_probe = self.anchors[place][-1]
        if len(self.anchors[place]) == 1:
            return (x.float() + newest).to(x.dtype)
        before, before_probe = self.anchors[place][-2]
        ratio = ((h.float() - x.float()) - before_probe).abs().mean() / (newest_probe - before_probe).abs().mean()
        gamma = ratio.nan_to_num(1.0).clamp(*self.gamma_range)
        return (x.float() + before + gamma * (newest - before)).to(x.dtype)


def _read(at: At, arguments: Any, named: dict[str, Any] | None = None) -> Tensor:
    """A copy of the stream's part; some models write to it in place later."""
    if isinstance(at.item, str):
        assert named is not None
        whole = named[at.item]
    else:
        whole = arguments if at.item is None else arguments[at.item]
    assert isinstance(whole, Tensor)
    return at.of(whole).clone()


def _written(at: At, result: Any, part: Tensor) -> Any:
    if at.item is None:
        return at.replace(result, part)
    assert isinstance(result, Sequence)
    assert isinstance(at.item, int)
    parts = list(result)
    parts[at.item] = at.replace(parts[at.item], part)
    return type(result)(parts)
