"""Finds the timestep among a graph's inputs: by its name, by its form, and by what becomes of it.

A timestep is a number for each sample, frame or token: a scalar, [B], [B, F], [B, 1, F], ... In most models it is
turned into waves, and these are projected. So neither the latents are one, nor an embedding of a timestep (which is
projected as it is), nor a table of positions (whose waves meet the stream itself).
Not handled: a timestep that is a Python number, which is a constant of the graph or a symbol; the refusal says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import TimestepError
from ..graph import operators, values
from ..graph.calling import numbers_of
from ..graph.dataflow import Dataflow
from ..graph.input_names import input_name, last_word, named, passed, tensor_inputs

_TIMES = re.compile(r"(?:^|_)(?:time_?steps?|times?|t|ts|tsteps?|sigmas?|(?:log_?)?snrs?|noise_levels?|noise_scales?)$")
# Numbers for each sample that are turned into waves too, but stay as they are from step to step.
_OTHERS = re.compile(
    r"guidance|scale|fps|frame_rate|_?ids?$|position|(?:^|_)pos(?:$|_)|coord|grid|(?<!step_)ind(?:ex|ices)|size|height|"
    r"width|resolution|aspect|crop|motion|length|seed|label|class"
)
_NEAR = 12  # operations within which the waves of a timestep are taken


@dataclass(frozen=True, slots=True)
class _Fate:
    """What becomes of an input."""

    waves: int | None  # operations until a sine or cosine is taken of it; None: none is, near
    projected: bool  # whether these waves are projected before they meet the latents
    contracted: bool  # whether it is projected as it is: several of its numbers make one


def find_timestep(flow: Dataflow, wanted: str | None) -> fx.Node | None:
    """The timestep among a graph's inputs, if it is there; `wanted` is its name, or the end of its path.

    Raises TimestepError if there is no input of that name, or several.
    """
    inputs = passed(flow)
    if wanted is not None:
        found = named(inputs, wanted)
        if len(found) == 1:
            return found[0]
        if found:
            meant = ", ".join(map(input_name, found))
            raise TimestepError(f"timestep_input={wanted!r} may be any of {meant}", advice="give the whole path")
        known = f"no tensor input named {wanted!r}; the tensor inputs are: {tensor_inputs(flow)}"
        raise TimestepError(known, advice="set timestep_input= to one of these, or leave it out")
    fates = {node: _fate(flow, node, inputs) for node in inputs if _may_be_followed(node)}
    alike = [node for node in fates if is_time(input_name(node)) and _may_be_named(flow, node, fates[node])]
    if alike:
        # Of several the plainest name: "timestep" rather than "target_timestep".
        return min(alike, key=lambda node: (*_rank(node, fates[node]), len(last_word(input_name(node)))))
    if symbolic_times(flow):
        return None
    unnamed = [node for node in fates if _may_be_unnamed(flow, node, fates[node])]
    return min(unnamed, key=lambda node: (not fates[node].projected, fates[node].waves), default=None)


def why_no_timestep(gm: fx.GraphModule, flow: Dataflow) -> str:
    """Why none was found."""
    numbers = [*symbolic_times(flow), *filter(is_time, numbers_of(gm))]
    unlike = [node for node in passed(flow) if is_time(input_name(node))]
    if numbers:
        about = f" (`{numbers[0]}` is a Python number, which no graph sees change: pass it as a tensor)"
    elif unlike:
        size = ", ".join(values.size_text(unlike[0]) or ())
        about = (
            f" (`{input_name(unlike[0])}` of size [{size}] has a timestep's name, but the form and the use of latents "
            "or of an embedding)"
        )
    else:
        about = ""
    return f"no timestep found among the tensor inputs ({tensor_inputs(flow)}){about}"


def is_time(name: str) -> bool:
    """Whether an input's name says that it is a timestep."""
    return _TIMES.search(last_word(name).lower()) is not None


def symbolic_times(flow: Dataflow) -> list[str]:
    """The names of Python numbers that Dynamo made symbols of, and that are timesteps by their names."""
    symbols = [n for n in flow.order if n.op == "placeholder" and isinstance(values.value(n), torch.SymInt)]
    return [input_name(node) for node in symbols if is_time(input_name(node))]


def is_one_each(node: fx.Node) -> bool:
    """Whether a tensor has one number for each sample: a scalar, [B], [B, 1], ..."""
    recorded = values.tensor(node)
    return recorded is not None and all(values.hint(size) == 1 for size in recorded.shape[1:])


def _rank(node: fx.Node, fate: _Fate) -> tuple[bool, bool]:
    return not (is_one_each(node) or fate.projected), fate.waves is None


def _may_be_named(flow: Dataflow, node: fx.Node, fate: _Fate) -> bool:
    """Whether what has a timestep's name has its form: not the latents `x_t`, not an embedding `t` [B, D]."""
    if is_one_each(node) or fate.projected:
        return True
    return not fate.contracted and (fate.waves is not None or values.size_text(node) not in _result_sizes(flow))


def _may_be_unnamed(flow: Dataflow, node: fx.Node, fate: _Fate) -> bool:
    """Whether the use of an input without a timestep's name is a timestep's: not a table of positions."""
    recorded = values.tensor(node)
    assert recorded is not None
    if fate.waves is None or _OTHERS.search(last_word(input_name(node)).lower()):
        return False
    is_of_samples = not recorded.shape or values.hint(recorded.shape[0]) == 1 or _has_batch(flow, node)
    is_projected = fate.projected and recorded.dtype.is_floating_point
    if is_one_each(node):
        return is_of_samples or is_projected
    return recorded.dim() == 2 and is_of_samples and is_projected


def _has_batch(flow: Dataflow, node: fx.Node) -> bool:
    """Whether a tensor has as many rows as a result."""
    rows = {size[0] for size in _result_sizes(flow) if size}
    return (values.size_text(node) or ("",))[0] in rows


def _result_sizes(flow: Dataflow) -> set[tuple[str, ...] | None]:
    return {values.size_text(node) for node in flow.needs(flow.order[-1])}


def _may_be_followed(node: fx.Node) -> bool:
    recorded = values.tensor(node)
    assert recorded is not None
    are_numbers = recorded.dtype is not torch.bool and not recorded.dtype.is_complex
    return are_numbers and recorded.layout is torch.strided and (recorded.dim() <= 2 or is_time(input_name(node)))


def _fate(flow: Dataflow, node: fx.Node, inputs: list[fx.Node]) -> _Fate:
    """Follows an input until its waves are taken, and these until they are projected or meet a large input."""
    mixed = flow.downstream(other for other in inputs if other is not node and not is_one_each(other))
    waves: int | None = None
    taken: set[fx.Node] = set()
    contracted = False
    front, seen, whole = (
        {node},
        {node},
        {node},
    )  # whole: what has as many numbers as the input, no waves or outer product
    for steps in range(_NEAR):
        found = {n for n in front if operators.is_wave(n)}
        waves = steps if found and waves is None else waves
        taken |= found
        ends = {n for n in front if _contracts(n, seen)}
        contracted |= any(n not in mixed and _contracts(n, whole) for n in ends)
        front = {user for n in front - found - ends for user in flow.needed_by(n)} - seen
        seen |= front
        whole |= {n for n in front if _count(n) == _count(node)}
    return _Fate(waves, _is_projected(flow, taken, mixed), contracted)


def _is_projected(flow: Dataflow, waves: set[fx.Node], mixed: set[fx.Node]) -> bool:
    front, seen = waves - mixed, set(waves)
    while front:
        if any(operators.is_heavy(node) for node in front):
            return True
        front = {user for node in front for user in flow.needed_by(node)} - seen - mixed
        seen |= front
    return False


def _count(node: fx.Node) -> int | None:
    recorded = values.tensor(node)
    return None if recorded is None else torch.Size(values.shape_hint(recorded)).numel()


def _contracts(node: fx.Node, followed: set[fx.Node]) -> bool:
    """Whether a product sums over numbers of what is followed. The outer product of times and frequencies does not."""
    if not operators.is_heavy(node):
        return False
    operand = next((needed for needed in node.all_input_nodes if needed in followed), None)
    recorded = values.tensor(operand) if operand is not None else None
    result = values.tensor(node)
    if recorded is None or result is None or not recorded.shape:
        return False
    if operators.is_einsum(node):
        return result.dim() < sum(n.dim() for a in node.all_input_nodes if (n := values.tensor(a)) is not None)
    return values.hint(recorded.shape[-1]) != 1
