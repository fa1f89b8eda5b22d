"""The backend of torch.compile: takes Dynamo's graph through the passes, and gives back what runs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .calls.clock import Clock, CountingClock, EarlierClock, InputClock, has_seen, telling
from .calls.cut_check import CutCheck, Held, held_of
from .calls.fragments import Fragment
from .calls.refusals import Refusal, Uncached
from .calls.session import SessionFinder, release
from .calls.settings import guided_by_slot
from .calls.sizes import read_sizes
from .calls.step import CompiledStep, Places
from .compiled import MARK
from .config import DiCacheConfig
from .cost import left_whole
from .cut import Cut, cut, told_timestep
from .engines.choice import choose_engine
from .errors import UnsupportedGraphError
from .graph import operators, values
from .graph.calling import is_direct, leaves_no_trace, note_call
from .graph.fragment import Function, broken_function, own_function, resumed_function
from .graph.input_names import input_name
from .graph.work import trunk_work, work
from .lowering import Lowering, forget_originals, lower_graph
from .mistakes import is_block, told
from .options import split_options, without_cuda_graphs
from .plan import Trunk

_log = logging.getLogger("dicache_compile")
FEW_BLOCKS = 16  # of a trunk that compiles in a minute or two as a whole
_SMALL = 12  # heavy operations; a graph with fewer is a fragment around a graph break, not worth a word


def dicache_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Any:
    """Compiles a diffusion transformer into a step that decides by itself whether to run its deep blocks.

    Use it in place, as `model.compile(backend="dicache", fullgraph=True)`, and call the model under `torch.no_grad()`
    or `torch.inference_mode()`.

    `options` takes the fields of DiCacheConfig, as `DiCacheConfig(...).options()` gives them. Inductor's own options
    may stand beside them. `mode` is Inductor's; torch.compile takes either a mode or options. `name` is what newer
    releases of torch.compile pass; it is not used.

    A graph that cannot be cut runs as torch.compile would run it, with one UncachedWarning that says why. With `strict`
    it raises UnsupportedGraphError. An unknown option is a ValueError, a bad value a ValueError or TypeError.
    """
    note_call(gm)
    config, settings = split_options(options, mode)
    run = _telling(gm, config, _compiled(gm, example_inputs, config, settings))
    forget_originals(gm)
    return run


# torch._dynamo.reset() calls this.
dicache_backend.reset = release  # type: ignore[attr-defined]
setattr(dicache_backend, MARK, True)


def _compiled(
    gm: fx.GraphModule, examples: Sequence[Any], config: DiCacheConfig, settings: Mapping[str, Any]
) -> Callable[..., Any]:
    function, broken = resumed_function(gm), broken_function(gm) is not None
    try:
        found = cut(gm, examples, config, told=function is not None and has_seen(function))
        step = _step(gm, examples, found, config, settings, function)
    except UnsupportedGraphError as error:
        if config.strict and not broken and _is_worth_a_word(gm):
            raise told(gm, error) from error
        refused = _uncached(gm, config, error, _plain(gm, examples, config, settings))
        if broken:
            return Fragment(dataclasses.replace(refused, loud=False), None, own_function(gm), 0, refused)
        return refused
    if broken:
        plain = _plain(gm, examples, config, settings)
        return Fragment(plain, step, step.function, step.work, plain)
    return step


def _plain(
    gm: fx.GraphModule, examples: Sequence[Any], config: DiCacheConfig, settings: Mapping[str, Any]
) -> Callable[..., Any]:
    """What plain torch.compile would make of a graph."""
    return gm.forward if config.lowering == "eager" else lower_graph(gm, examples, settings)


def _step(
    gm: fx.GraphModule,
    examples: Sequence[Any],
    found: Cut,
    config: DiCacheConfig,
    settings: Mapping[str, Any],
    function: Function | None,
) -> CompiledStep:
    engine = choose_engine(found, config, lowering_of(gm, examples, found, config, settings))
    for stack in left_whole(found.plan, {node: work((node,)) for node in found.plan.graph_module.graph.nodes}):
        _log.warning("%s is as heavy as what is cut, and runs on every step: see `explain`", stack.owner)
    return CompiledStep(
        config=config,
        find_session=SessionFinder(config, found, engine),
        engine=engine,
        slots=found.program.slots,
        sizes=read_sizes(found.plan.graph_module.graph, found.program.slots),
        places=places_of(found),
        clock=_clock(found, config, function),
        function=own_function(gm),
        work=trunk_work(Trunk(found.partition.all_blocks)),
        guided=guided_by_slot(config),
        told_ahead=found.program.reused is not None,
        check=_check(found, config),
        stays=_stays(gm, found),
    )


def _check(found: Cut, config: DiCacheConfig) -> CutCheck | None:
    """What holds the first rule's cut against the truth; None where that is not asked for, or cannot be."""
    held = checked_of(found, config)
    return CutCheck(found.program, held) if held else None


def checked_of(found: Cut, config: DiCacheConfig) -> list[Held]:
    """What of the first rule's cut is held against the truth."""
    if config.all_rules()[0].carried != "auto" or found.partition.rule:
        return []
    base = getattr(config.rules_in_force()[0].estimator, "base", "x")
    return held_of(found.program, found.partition.carried, base)


def _stays(gm: fx.GraphModule, found: Cut) -> frozenset[int] | None:
    """The places of inputs that a call does not bring along; None where a call is more than this graph."""
    if broken_function(gm) or resumed_function(gm) or not (is_direct(gm) and leaves_no_trace(gm)):
        return None
    nodes = enumerate(found.placeholders)
    return frozenset(place for place, node in nodes if values.is_of_module(node) or values.tensor(node) is None)


def _clock(found: Cut, config: DiCacheConfig, function: Function | None) -> Clock:
    if found.inputs.timestep is not None:
        return InputClock(found.placeholders.index(found.inputs.timestep))
    if function is not None and has_seen(function):
        return EarlierClock(function)
    return CountingClock()


def _telling(gm: fx.GraphModule, config: DiCacheConfig, run: Callable[..., Any]) -> Callable[..., Any]:
    """The graph; where it ends at a graph break and has the timestep, one that tells it to the graphs that follow."""
    function = broken_function(gm)
    timestep = told_timestep(gm, config) if function is not None else None
    if function is None or timestep is None:
        return run
    return telling(run, function, gm.graph.find_nodes(op="placeholder").index(timestep))


def lowering_of(
    gm: fx.GraphModule, examples: Sequence[Any], found: Cut, config: DiCacheConfig, settings: Mapping[str, Any]
) -> Lowering:
    """How the pieces of a cut graph are lowered."""
    names = [node.name for node in found.placeholders]
    return Lowering(
        partition=found.partition,
        slots=found.program.slots,
        examples=dict(zip(names, examples, strict=True)),
        source=gm,
        settings=without_cuda_graphs(settings) if config.lowering == "inductor" else None,
        once=config.blocks == "once" or (config.blocks == "auto" and len(found.partition.all_blocks) > FEW_BLOCKS),
    )


def places_of(found: Cut) -> Places:
    """Where the inputs of a cut graph are."""
    places = {node: place for place, node in enumerate(found.placeholders)}
    weights = _model_weights(found)
    return Places(
        conditions=tuple(places[node] for node in found.inputs.conditions),
        names=tuple(input_name(node) for node in found.inputs.conditions),
        arguments=frozenset(input_name(node) for node in found.placeholders if values.is_argument(node)),
        latents=places[found.inputs.latents] if found.inputs.latents is not None else None,
        weights=tuple(places[node] for node in weights),
    )


def _model_weights(found: Cut) -> list[fx.Node]:
    """The weights by which a call's model is known: one of each deep block, the best first.

    Parameters of the deep blocks: models that share an embedder or a table of positions are still two. Rather not one
    that is made of other tensors, as quantised weights are: moving the model would put another in its place.
    """
    owned = [node for node in found.inputs.weights if values.is_of_module(node)]
    parameters = [node for node in owned if isinstance(values.value(node), torch.nn.Parameter)]
    ranked = sorted(parameters or owned, key=lambda node: is_traceable_wrapper_subclass(values.value(node)))
    blocks = found.partition.trunk.blocks[found.partition.probe_depth :]
    needed = [{read for node in block.nodes for read in node.all_input_nodes} for block in blocks]
    deep = [next((node for node in ranked if node in reads), None) for reads in needed]
    return [node for node in dict.fromkeys(deep) if node is not None] or ranked[:1]


def _uncached(
    gm: fx.GraphModule, config: DiCacheConfig, refusal: UnsupportedGraphError, plain: Callable[..., Any]
) -> Uncached:
    """A graph that is not cut, as it runs; it says why, unless it is a small one of a call that has others."""
    whole = told(gm, refusal)
    inputs = gm.graph.find_nodes(op="placeholder")
    # The last one: models that share an embedder are still two.
    weights = [place for place, node in enumerate(inputs) if values.is_of_module(node)]
    return Uncached(
        plain=plain,
        weight=weights[-1] if weights else None,
        refusal=Refusal(config, whole.reason, _heavy(gm)),
        error=whole,
        loud=_is_worth_a_word(gm),
        warned=set() if is_block(gm) else None,
    )


def _is_worth_a_word(gm: fx.GraphModule) -> bool:
    """Whether a graph that is not cut is more than a small one of a call that has others."""
    return broken_function(gm) is not None or _heavy(gm) >= _SMALL or is_block(gm)


def _heavy(gm: fx.GraphModule) -> int:
    """How many heavy operations a graph has, those of its subgraphs (of a checkpoint, say) among them."""
    graphs = [module.graph for module in gm.modules() if isinstance(module, fx.GraphModule)]
    return sum(operators.is_heavy(node) for graph in graphs for node in graph.nodes)
