"""Lowers one piece: through Inductor, or as it is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.source import LocalSource
from torch._guards import TracingContext
from torch._inductor.exc import InductorError
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..errors import LoweringError
from ..graph import values
from ..graph.copying import copy_module
from ..plan import Partition
from ..program import Kind, Piece, Slot, Value
from .chain import Callee, chain
from .fake_values import record_fake_values
from .forms import form
from .kept import watched
from .once import compute_once
from .stretches import stretches

Compiler = Callable[[fx.GraphModule, Sequence[object], Mapping[str, Any]], Callee]
_KNOWN = {"index": torch.int64, "since": torch.int64, "fresh": torch.bool, "anew": torch.bool}  # of a step


@dataclass(frozen=True, slots=True)
class Lowering:
    """How the pieces of one graph are lowered. To be used while Dynamo is still compiling that graph."""

    partition: Partition
    slots: tuple[Slot, ...]
    examples: Mapping[str, object]  # what the graph was traced with, by placeholder
    source: fx.GraphModule  # as it came from Dynamo
    settings: Mapping[str, Any] | None  # Inductor's; None: run eagerly
    once: bool = True  # whether equal blocks are compiled once
    given: dict[Value, object] = field(default_factory=dict)  # what the pieces lowered so far give: fake values
    forms: dict[Hashable, Callee] = field(default_factory=dict)  # what is compiled once, by its form
    kept: list[fx.GraphModule] = field(default_factory=list)  # whose objects the forms name
    compiler: Compiler | None = None  # None: `lower_graph`

    def __call__(self, piece: Piece) -> Callee:
        """Something that takes the piece's inputs in order and returns its outputs in order."""
        if self.settings is None:
            return piece.graph_module.forward
        self._carry_metadata(piece)
        try:
            return self._lowered(piece, compute_once)
        except LoweringError:
            # Inductor fuses what stands beside these numbers otherwise, and has a bug there: in torch 2.13 a KeyError,
            # from loops on a CPU around several kernels.
            return self._lowered(piece, lambda _: None)

    def _lowered(self, piece: Piece, prepare: Callable[[fx.GraphModule], None]) -> Callee:
        # compile_fx takes the graph that it is given apart, and pieces are kept for people to read.
        graph_module = copy_module(piece.graph_module)
        examples = [self._example(value) for value in piece.reads]
        record_fake_values(graph_module, examples, self._fake_mode())
        self._note_given(graph_module, piece)
        prepare(graph_module)
        parts = stretches(graph_module) if self.once and not self._freezes() else ()
        if not parts:
            return self._compiled(graph_module, examples)
        return chain(graph_module, parts, [self._compiled_once(part.graph_module) for part in parts])

    def _compiled_once(self, stretch: fx.GraphModule) -> Callee:
        """What runs a stretch: the same for all of one form.

        A stretch may read Python floats, and its code hold for these alone. PyTorch then makes a guard, which is about
        where these are from: nothing would notice that another stretch's are others.
        """
        placeholders = stretch.graph.find_nodes(op="placeholder")
        numbers = {node for node in placeholders if values.is_number(node) and node.name in self.examples}
        known, own = form(stretch), tuple(node.name for node in placeholders if node in numbers)
        for found in ((known, ()), (known, own)):
            if found in self.forms:
                return self.forms[found]
        sources = self._sources()
        for node in placeholders:
            # A weight is none of its own: each call brings others.
            node._dynamo_source = sources[node.name] if node in numbers else None
        examples = [self.examples[node.name] if node in numbers else values.value(node) for node in placeholders]
        self.kept.append(stretch)
        before = self._guards()
        run = self._compiled(copy_module(stretch), examples)
        self.forms[known, own if self._guards() != before else ()] = run
        return run

    def _guards(self) -> int:
        """How many PyTorch has made so far of sizes and numbers."""
        env = self._fake_mode().shape_env
        return len(env.guards) if env is not None else 0

    def _freezes(self) -> bool:
        """Whether Inductor puts the weights into the code, which is then of one block alone."""
        from torch._inductor import config

        return bool((self.settings or {}).get("freezing", config.freezing))

    def _compiled(self, graph_module: fx.GraphModule, examples: Sequence[object]) -> Callee:
        assert self.settings is not None
        graph_module._param_name_to_source = self._sources_of_constants(graph_module)  # type: ignore[assignment]
        try:
            compiler = self.compiler or lower_graph
            return compiler(graph_module, [_for_backends(example) for example in examples], self.settings)
        except Exception as error:  # whatever a piece does that AOTAutograd or Inductor cannot have
            if isinstance(error, TorchDynamoException) and not isinstance(error, InductorError):
                raise  # not an error: has Dynamo trace the frame anew
            raise LoweringError(f"Inductor cannot compile a part of the cut graph: {_in_one_line(error)}") from error

    def _sources_of_constants(self, graph_module: fx.GraphModule) -> dict[str, Any]:
        """Where the tensors come from that a piece holds: as Dynamo says, or for a plug-in's own by their names."""
        known = getattr(self.source, "_param_name_to_source", {})
        return {**{name: LocalSource(name) for name, _ in graph_module.named_buffers()}, **known}

    def _carry_metadata(self, piece: Piece) -> None:
        """Gives a piece what AOTAutograd reads of Dynamo's graphs; else each weight counts as an input that changes."""
        sources = self._sources()
        for placeholder, value in zip(piece.graph_module.graph.find_nodes(op="placeholder"), piece.reads, strict=True):
            placeholder._dynamo_source = sources.get(value.name) if value.kind is Kind.INPUT else None

    def _sources(self) -> dict[str, Any]:
        """Where Dynamo has each input from."""
        return {n.name: getattr(n, "_dynamo_source", None) for n in self.source.graph.find_nodes(op="placeholder")}

    def _note_given(self, graph_module: fx.GraphModule, piece: Piece) -> None:
        """Remembers what a piece gives to others, where running it on fake tensors told."""
        (returned,) = graph_module.graph.find_nodes(op="output")
        for value, node in zip(piece.gives, returned.args[0], strict=True):
            if isinstance(node, fx.Node) and values.value(node) is not None:
                self.given[value] = values.value(node)

    def _example(self, value: Value) -> object:
        if value.kind is Kind.INPUT:
            return self.examples[value.name]
        if value.kind is Kind.STATE:
            return self._example_state(value.name)
        if value.kind is Kind.CROSSING:
            nodes = self.partition.graph_module.graph.nodes
            return values.value(next(node for node in nodes if node.name == value.name))
        if value in self.given:
            return self.given[value]
        dtype = torch.bool if value.kind is Kind.DECISION else _KNOWN.get(value.name.partition(".")[0], torch.float32)
        return self._fake(lambda device: torch.empty((), dtype=dtype, device=device))

    def _example_state(self, name: str) -> Tensor:
        slot = next(slot for slot in self.slots if slot.name == name)
        shape: Sequence[Any] = slot.shape
        if slot.like is not None:
            carried = values.tensor(slot.like)
            assert carried is not None
            shape = slot.shape_of(carried.shape)
        return self._fake(lambda device: torch.empty(tuple(shape), dtype=slot.dtype, device=device))

    def _fake(self, make: Callable[[torch.device], Tensor]) -> Tensor:
        with self._fake_mode():
            return make(self.slots[0].device)

    def _fake_mode(self) -> FakeTensorMode:
        carried = values.tensor(self.partition.carried[0].x)
        assert isinstance(carried, FakeTensor)
        return carried.fake_mode


def lower_graph(gm: fx.GraphModule, examples: Sequence[object], settings: Mapping[str, Any]) -> Callee:
    """Compiles a graph with Inductor under these settings."""
    # Here, because it takes a second that a process which only reads results need not spend.
    from torch._inductor.compile_fx import compile_fx

    with watched():
        compiled: Callee = compile_fx(gm, list(examples), config_patches=dict(settings))  # type: ignore[arg-type, assignment]
    return compiled


def _for_backends(example: object) -> object:
    """A fake value as one of the mode that Dynamo has for its backends. Before 2.10 torch takes those of no other."""
    context = TracingContext.try_get()
    mode = context.fake_mode if context is not None else None
    if mode is None or not isinstance(example, FakeTensor) or example.fake_mode is mode:
        return example
    return mode.from_tensor(example)


def _in_one_line(error: Exception) -> str:
    """What went wrong. An error in one of the processes that compile kernels says it in the last line of its trace."""
    if not isinstance(error, InductorError):
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    inner = error.inner_exception
    details = str(getattr(inner, "details", "")).strip()
    return details.splitlines()[-1].strip() if details else str(error).strip().partition("\n")[0]
