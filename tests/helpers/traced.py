"""A model that Dynamo traces once and that runs under several configs: tracing is most of a test's time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from dicache_compile import DiCacheConfig, dicache_backend


class Traced:
    """`under` gives the model as compiled with one of the configs; `graphs` are what Dynamo made of it."""

    def __init__(self, model: nn.Module, configs: Mapping[str, DiCacheConfig], **how: Any) -> None:
        """`how`: arguments of `torch.compile`."""
        self.graphs: list[fx.GraphModule] = []
        self._using = ""

        def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
            self.graphs.append(gm)
            steps = {name: dicache_backend(gm, examples, options=c.options()) for name, c in configs.items()}
            return lambda *inputs: steps[self._using](*inputs)

        self._call = torch.compile(model, backend=backend, **how)

    def under(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._using = name
            return self._call(*args, **kwargs)

        return call
