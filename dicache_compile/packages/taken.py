"""What a package is made of: one call of a model as one cut graph, with where its inputs come from and go to."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..config import DiCacheConfig
from ..cut import Cut, cut
from ..errors import ExportError, UnsupportedGraphError
from ..graph import values
from ..graph.input_names import input_name
from ..mistakes import told
from ..subject import subjects
from ..tracing import Whole, trace_whole, uncompiled
from .form import Form, form_of

_TAKES = "it takes tensors, None, numbers, texts, and lists, tuples and dicts of these"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a graph's input comes from."""

    name: str  # of a weight its path in the model, of an argument that in the call
    argument: int | None  # its place among the call's tensors; None: a weight


@dataclass(frozen=True)
class Taken:
    """A cut graph, and the call that it is of."""

    model: nn.Module
    config: DiCacheConfig
    graph_module: fx.GraphModule  # as it came from Dynamo
    found: Cut
    examples: Sequence[Tensor]  # of the graph's inputs
    sources: tuple[Source, ...]  # of each
    parameters: tuple[inspect.Parameter, ...]  # of the model's forward
    given: Mapping[str, Any]  # the arguments, by parameter
    arguments: Mapping[str, Form]  # of these
    result: Form

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that the graph reads, by their names."""
        pairs = zip(self.sources, self.examples, strict=True)
        return {source.name: example.detach() for source, example in pairs if source.argument is None}


def take(pipe_or_model: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Taken:
    """Traces one call of a model, and cuts its graph by the model's own config; the model does not run.

    Of a pipeline the call is the first one that it makes of its compiled model, given these arguments.

    Raises TypeError if it is no model with arguments of its own, nor a pipeline with one compiled model, ExportError
    where one call cannot be had as one graph of tensors, and UnsupportedGraphError where the graph cannot be cut.
    """
    one, *more = subjects(pipe_or_model)
    if more:
        names = ", ".join(each.name for each in (one, *more))
        raise TypeError(
            f"a package is of one model, and {names} are compiled: give it pipe.{one.name} and its arguments"
        )
    if one.name:
        args, kwargs = _first_call(pipe_or_model, one.model, args, kwargs)
    signature = inspect.signature(one.model.forward)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    leaves: list[Tensor] = []
    arguments = {name: _argument(name, given, leaves) for name, given in bound.arguments.items()}
    whole = _traced(one.model, args, kwargs)
    _check(whole.graph_module)
    config = one.config or DiCacheConfig()
    with torch.no_grad():
        try:
            found = cut(whole.graph_module, whole.examples, config)
        except UnsupportedGraphError as error:
            raise told(whole.graph_module, error) from error
    if found.plan.ranks is not None:
        raise ExportError(
            "its ranks decide as one, and a package knows no process group", advice="compile it on each rank"
        )
    return Taken(
        model=one.model,
        config=config,
        graph_module=whole.graph_module,
        found=found,
        examples=whole.examples,
        sources=tuple(_sources(whole, one.model, leaves)),
        parameters=tuple(signature.parameters.values()),
        given=bound.arguments,
        arguments=arguments,
        result=_result(whole),
    )


class _Called(Exception):  # noqa: N818 - no error: it ends the pipeline's run
    pass


def _first_call(
    pipe: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the first call that a pipeline makes of its model."""

    def end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _Called(args, kwargs)

    hook = model.register_forward_pre_hook(end, with_kwargs=True)
    try:
        with uncompiled(model):
            pipe(*args, **kwargs)
    except _Called as called:
        args, kwargs = called.args
        return args, kwargs
    finally:
        hook.remove()
    raise TypeError(
        f"this call of the {type(pipe).__name__} did not call its model: give the arguments of one that does"
    )


def _argument(name: str, given: object, leaves: list[Tensor]) -> Form:
    def place(tensor: Tensor) -> int:
        if any(tensor is other for other in leaves):
            raise ExportError(f"{name}: this tensor is given twice in the call", advice="give a clone of it")
        leaves.append(tensor)
        return len(leaves) - 1

    try:
        return form_of(given, place, name)
    except TypeError as error:
        raise ExportError(f"an argument that a package cannot take: {error}", advice=_TAKES) from error


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Whole:
    try:
        whole = trace_whole(model, args, kwargs)
    except TorchDynamoException as error:
        text = " ".join(str(error).partition("from user code")[0].partition("Developer debug")[0].split())
        raise ExportError(
            f"Dynamo cannot make one graph of the model: {text}",
            advice="change that part of the model: torch.compile(model, fullgraph=True) shows the line, too",
        ) from error
    if whole is None:
        raise ExportError("there is nothing in the model's graph", advice="give the arguments of a real call")
    if whole.changes:
        raise ExportError(
            f"a call changes Python objects, which a package has none of: {', '.join(whole.changes)}",
            advice="have the model keep nothing between calls",
        )
    return whole


def _check(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        value = values.value(node)
        if node.op == "placeholder" and isinstance(value, Tensor) and is_traceable_wrapper_subclass(value):
            raise ExportError(
                f"{input_name(node)} is a {type(value).__name__}, and AOTInductor takes plain tensors",
                advice="make a package of the model before it is quantised",
            )
        parts = value if isinstance(value, (tuple, list)) else (value,)
        if any(isinstance(size, torch.SymInt) for part in parts for size in _sizes(part)):
            raise ExportError(
                "a size or a number that only running tells",
                node,
                advice="have the model compute it from its arguments' shapes, and mark no dimension as dynamic",
            )


def _sizes(value: object) -> Sequence[object]:
    return tuple(value.shape) if isinstance(value, Tensor) else (value,)


def _sources(whole: Whole, model: nn.Module, leaves: Sequence[Tensor]) -> list[Source]:
    owned = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    places = {id(tensor): place for place, tensor in enumerate(leaves)}
    found = []
    for node, example in zip(whole.graph_module.graph.find_nodes(op="placeholder"), whole.examples, strict=True):
        argument = places.get(id(example))
        name = input_name(node) if argument is not None else owned.get(id(example), node.name)
        if argument is None and not values.is_weight(node):
            raise ExportError(
                f"{input_name(node)} is neither an argument nor a tensor of the model",
                advice="pass it as an argument, or keep it as a buffer of the model",
            )
        found.append(Source(name, argument))
    return found


def _result(whole: Whole) -> Form:
    places = {id(tensor): place for place, tensor in enumerate(whole.outputs)}

    def place(tensor: Tensor) -> int:
        if id(tensor) not in places:
            raise ExportError("a call returns one of its arguments as it is", advice="have it return a clone")
        return places[id(tensor)]

    try:
        return form_of(whole.result, place, "the result")
    except TypeError as error:
        raise ExportError(
            f"what a call returns cannot be made without the model's code: {error}",
            advice="with models of diffusers or transformers give return_dict=False, too",
        ) from error


def register(root: nn.Module, name: str, weight: Tensor) -> None:
    """Keeps a weight as the buffer of that path."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_buffer(leaf, weight)
