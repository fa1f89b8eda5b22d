"""Graphs that AOTInductor compiles into libraries, and opens again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..lowering.chain import Callee, Chain, Link


@dataclass(frozen=True, slots=True)
class Named:
    """A compiled graph, by its name in a package. It stands for something to call, which it is once it is loaded."""

    name: str
    outputs: tuple[tuple[int, Any], ...]  # as those of a `Chain` around it
    inputs: int

    def __call__(self, *_: Any) -> Any:
        raise AssertionError(f"{self.name} is compiled to be packed, not to be run")

    def chain(self) -> Chain:
        """The same as a chain of one."""
        given = sum(place >= self.inputs for place, _ in self.outputs)
        inside = tuple(range(self.inputs)), tuple(range(self.inputs, self.inputs + given))
        return Chain((Link(self, *inside, over=()),), given, self.outputs)


@dataclass(frozen=True, slots=True)
class Compiling:
    """Compiles graphs to libraries: a `lowering.Compiler`."""

    files: dict[str, list[str]] = field(default_factory=dict)  # by name

    def __call__(self, gm: fx.GraphModule, examples: Sequence[object], settings: Mapping[str, Any]) -> Callee:
        name = f"g{len(self.files)}"
        outputs = _leave_out_what_is_known(gm)
        self.files[name] = compiled(gm, examples, settings)
        return Named(name, outputs, len(examples))


def compiled(gm: fx.GraphModule, examples: Sequence[object], settings: Mapping[str, Any]) -> list[str]:
    """The files of a library that runs a graph of tensors. Nothing of the examples is in them."""
    from torch._inductor import aot_compile

    mode = FakeTensorMode()
    with mode:
        inputs = [_like(example) for example in examples]
    with torch.no_grad():
        files: Any = aot_compile(gm, tuple(inputs), options={**settings, "aot_inductor.package": True})
    return list(files)


def opened(path: str, name: str) -> Callable[..., Sequence[Tensor]]:
    """What runs a library of a package."""
    loader = torch._C._aoti.AOTIModelPackageLoader(path, name, False, 1, -1)
    return lambda *inputs: loader.boxed_run(list(inputs))


def _like(example: object) -> Tensor:
    assert isinstance(example, Tensor)
    return torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=example.device)


def _leave_out_what_is_known(gm: fx.GraphModule) -> tuple[tuple[int, Any], ...]:
    """Takes from a graph's outputs what is no tensor, or one of its inputs; tells where all are found then."""
    inputs = {node: place for place, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    (returned,) = gm.graph.find_nodes(op="output")
    computed: dict[fx.Node, int] = {}
    outputs: list[tuple[int, Any]] = []
    for one in returned.args[0]:
        if not isinstance(one, fx.Node):
            outputs.append((-1, one))
        elif one in inputs:
            outputs.append((inputs[one], None))
        else:
            outputs.append((computed.setdefault(one, len(inputs) + len(computed)), None))
    returned.args = (tuple(computed),)
    gm.recompile()
    return tuple(outputs)
