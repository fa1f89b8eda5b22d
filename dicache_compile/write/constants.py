"""Tensors that a gate or an estimator makes or keeps: constants of the graph that its methods are traced into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode


class ConstantTracer(fx.proxy.GraphAppendingTracer):
    """Records operations; a tensor among their arguments becomes an attribute of the graph, on the model's device."""

    def __init__(self, graph: fx.Graph, device: torch.device, prefix: str) -> None:
        """`prefix`: begins the names of the attributes."""
        super().__init__(graph)
        self._prefix = prefix
        self._device = device
        self._made: dict[int, tuple[Tensor, fx.Node]] = {}  # with the tensor, so that its id stays its own
        self.constants: dict[str, Tensor] = {}  # by attribute
        self._watch: Callable[[fx.Node], fx.Node] | None = None

    @contextmanager
    def watched_by(self, watch: Callable[[fx.Node], fx.Node] | None) -> Iterator[None]:
        """While operations are recorded so, `watch` says which node is in the place of a new one."""
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        return proxy if self._watch is None else fx.Proxy(self._watch(proxy.node), self)

    def create_arg(self, a: Any) -> Any:
        return self.constant(a) if isinstance(a, Tensor) else super().create_arg(a)

    def constant(self, tensor: Tensor) -> fx.Node:
        """The node that reads a tensor."""
        if id(tensor) not in self._made:
            name = f"{self._prefix}{len(self.constants)}"
            with torch.inference_mode(False), torch.no_grad():
                self.constants[name] = tensor.detach().to(self._device, copy=True)
            # No module has the graph yet that could be asked for the attribute.
            self._made[id(tensor)] = tensor, self.graph.create_node("get_attr", name)
        return self._made[id(tensor)][1]


class PlacesOnDevice(TorchFunctionMode):
    """Reads a tensor's places by a tensor without asking the host which: `table[index]`."""

    def __init__(self, tracer: ConstantTracer | None = None) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and self._is_place(args[1]):
            index = torch.ops.aten.index.Tensor
            if self._tracer is None:
                return index(args[0], [args[1]])
            return self._tracer.create_proxy("call_function", index, (args[0], [args[1]]), {})
        return func(*args, **(kwargs or {}))

    def _is_place(self, index: Any) -> bool:
        if self._tracer is not None:
            return isinstance(index, fx.Proxy)
        return isinstance(index, Tensor) and index.dim() == 0 and index.dtype in (torch.int32, torch.int64)
