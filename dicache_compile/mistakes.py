"""What a refused graph tells of how the model was compiled: another cache, a block alone, a whole sampling loop."""

from __future__ import annotations

import re
from collections import defaultdict

from torch import fx

from .errors import NoTrunkError, UnsupportedGraphError
from .graph import operators, values
from .graph.calling import is_direct
from .graph.fragment import about_break, broken_function, frames_of_break, resumed_function
from .graph.module_path import entries

_OTHER_CACHE = re.compile(r"diffusers/hooks/(\w*cache\w*|pyramid_attention_broadcast|layer_skip)\.py")
_OF_ONE_BLOCK = 8  # products of tokens: attention on itself, on the prompt and on an image, each written as two
_IN_PLACE = "compile the whole denoiser, in place: model.compile(backend=...)"


def told(gm: fx.GraphModule, refusal: UnsupportedGraphError) -> UnsupportedGraphError:
    """The refusal of a graph with what is known beyond it: how the model was compiled, or why its graph broke."""
    use, broken = about_use(gm) if refusal.asks_for_use else None, about_break(gm)
    if use or (broken and isinstance(refusal, NoTrunkError)):
        return refusal.advising(use or broken)
    return refusal.advising(refusal.advice, broken)


def about_use(gm: fx.GraphModule) -> str | None:
    """What was done that leaves nothing to cut, and what to do instead; None where nothing of the kind is seen."""
    if other := _other_cache(gm):
        return f"diffusers' own cache is on ({other}.py), which runs in every block: call model.disable_cache()"
    if (times := _times_run(gm)) > 1:
        return f"the same blocks run {times} times in this graph; if it is a sampling loop, {_IN_PLACE}, not the loop"
    if is_block(gm):
        return (
            "this is a whole call of what may be one block of a model, as compile_repeated_blocks compiles them: "
            f"{_IN_PLACE}"
        )
    return None


def is_block(gm: fx.GraphModule) -> bool:
    """Whether a graph is a whole call that mixes tokens, but has no list of blocks: a block that is compiled alone."""
    if not is_direct(gm) or resumed_function(gm) is not None or broken_function(gm) is not None:
        return False
    return 0 < sum(map(_mixes_tokens, gm.graph.nodes)) <= _OF_ONE_BLOCK and not _calls(gm)


def _other_cache(gm: fx.GraphModule) -> str | None:
    traces = (node.stack_trace or "" for node in gm.graph.nodes)
    files = (frame.filename for frame in frames_of_break(gm))
    return next((found.group(1) for text in (*files, *traces) if (found := _OTHER_CACHE.search(text))), None)


def _times_run(gm: fx.GraphModule) -> int:
    """How often the entries of a list run whose entries are called one after another, and again."""
    lists = _calls(gm)
    return max((min(map(len, indices.values())) for indices in lists.values() if len(indices) > 1), default=1)


def _calls(gm: fx.GraphModule) -> dict[str, dict[str, set[str]]]:
    """The lists around token-mixing nodes: owner -> key of an entry -> its calls."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for node in filter(_mixes_tokens, gm.graph.nodes):
        for entry in entries(node):
            found[entry.owner][entry.key].add(entry.call)
    return found


def _mixes_tokens(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    if operators.is_contraction(node):
        return sum(values.tensor(n) is not None and n.op != "placeholder" for n in node.all_input_nodes) > 1
    return operators.is_attention(node)
