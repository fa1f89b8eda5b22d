"""A cached model as one graph of `torch.export`, with a `torch.cond` where a step chooses its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from ..calls.layout import Layout
from ..calls.settings import Told, guided_by_slot
from ..calls.shared import Shared
from ..calls.sizes import read_sizes
from ..calls.state import StreamState
from ..calls.streams import SINGLE
from ..errors import ExportError
from ..program import Kind, Piece, Value
from ..write import single_graph
from ..write.control import UNANNOUNCED
from ..write.guidance import role_of
from .form import fill, tensors_of
from .taken import Taken, register, take


def export_graph(pipe_or_model: object, /, *args: Any, **kwargs: Any) -> ExportedProgram:
    """A model with its cache as one exported graph, whose state is an argument and a result.

    `args` and `kwargs` are as for `save_package`; the graph is of that call's shapes and numbers. It is called as

        result, state = exported.module()(arguments, state)

    `arguments` has all arguments of the model's forward by name, those with defaults too. `state` is a dict of tensors.
    `exported.example_inputs` has both: `(arguments, state), _ = exported.example_inputs`. That state is the one that a
    stream starts with, and tells the graph of the config's `num_steps`.

    Each state decides by itself, as with `joint=False`.

    Raises what `save_package` raises but for what is about files, ExportError for a config with `joint=True`, and
    StepError where its rule needs `num_steps` and has none.
    """
    taken = take(pipe_or_model, args, kwargs)
    if taken.config.joint:
        raise ExportError(
            "joint=True has streams decide together, and an exported graph knows of one", advice="leave joint out"
        )
    if taken.found.inputs.timestep is None:
        raise ExportError("the steps of a model without a timestep are counted outside of its graph")
    with torch.no_grad():
        single = _Single(taken, _without_data(single_graph(taken.found.program)))
        first = _first_state(taken)  # which may need to be told more
        try:
            return torch.export.export(single, (dict(taken.given), first))
        except Exception as error:  # whatever an operation of the model does that export cannot have
            text = str(error).strip().partition("\n")[0]
            raise ExportError(f"torch.export cannot take the graph: {type(error).__name__}: {text}") from error


def _without_data(piece: Piece) -> Piece:
    """The graph with `x.detach()` in the place of `x.data`, which `torch.export` cannot take."""
    data = getattr(torch._C._autograd, "_get_data_attr", None)
    for module in piece.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if data is not None and node.target is data:
                node.target = torch.Tensor.detach
    return piece


class _Single(nn.Module):
    def __init__(self, taken: Taken, piece: Piece) -> None:
        super().__init__()
        for name, weight in taken.weights.items():
            register(self, name, weight)
        self._taken, self._piece, self._graph = [taken], [piece], piece.graph_module

    def forward(self, arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
        (taken,), (piece,) = self._taken, self._piece
        tensors: list[Tensor] = []
        for name, form in taken.arguments.items():
            tensors += tensors_of(form, arguments[name], name)
        known = {slot.value: state[slot.name] for slot in taken.found.program.slots}
        for value, source in zip(taken.found.program.inputs, taken.sources, strict=True):
            known[value] = tensors[source.argument] if source.argument is not None else self._weight(source.name)
        given = dict(zip(piece.gives, self._graph(*(known[value] for value in piece.reads)), strict=True))
        new = {name: given.get(Value(Kind.STATE, name), old) for name, old in state.items()}
        return fill(taken.result, [given[value] for value in taken.found.program.outputs]), new

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name)


def _first_state(taken: Taken) -> dict[str, Tensor]:
    """What a stream starts with, as `calls.step` would have it for its first call."""
    config, program = taken.config, taken.found.program
    shapes = read_sizes(taken.found.plan.graph_module.graph, program.slots).fixed
    assert shapes is not None  # `take` refuses others
    state = StreamState(Layout((0, ()), program.slots, shapes, (), frozenset()), {}, Shared())
    state.tell(Told(config).settings(config.num_steps))
    state.set_run(config.num_steps or UNANNOUNCED, 0)
    state.take_roles({slot: role_of(estimator, SINGLE) for slot, estimator in guided_by_slot(config).items()})
    return dict(state.tensors)
