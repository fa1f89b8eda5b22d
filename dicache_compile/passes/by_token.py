"""Pass: by_token. Finds what a reused step runs of a site on some of its tokens: all from its first linear on.

What comes before that, norms and modulation, is cheap and runs on all tokens; it also tells how much each has changed.
Requires: partitions at parts of blocks, for the rules that ask for it. Ensures: what is found computes each token from
that token alone. An attention is left as a whole.
Not handled: sites whose first linear takes another shape than they give; what `fewer_tokens` refuses.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from ..errors import MixedTokensError
from ..graph import operators, values
from ..graph.dataflow import Dataflow
from ..plan import ByToken, Carried, Partition, Plan, Region
from .fewer_tokens import TOKENS, FewerTokens
from .stacks import mixes_tokens


def by_token(plan: Plan) -> Plan:
    """The plan with what each site computes by token, for the rules that ask for it.

    Raises MixedTokensError where a site may mix tokens, or where all sites of a rule are attentions.
    """
    shares = [rule.share for rule in plan.asked.rules]
    if not any(share is not None for share in shares):
        return plan
    flow = Dataflow(plan.graph_module.graph)
    found = tuple(_with_tokens(flow, cut, shares[cut.rule]) for cut in plan.found)
    for number, share in enumerate(shares):
        carried = [value for cut in found if cut.rule == number for value in cut.carried]
        if share is not None and all(value.by_token is None for value in carried):
            raise MixedTokensError(
                "the tokens of an attention look at each other, and there is no other site", carried[0].y
            )
    return dataclasses.replace(plan, found=found)


def _with_tokens(flow: Dataflow, cut: Partition, share: float | None) -> Partition:
    if share is None:
        return cut
    carried = tuple(dataclasses.replace(value, by_token=_found(flow, cut, value, share)) for value in cut.carried)
    return dataclasses.replace(cut, carried=carried)


def _found(flow: Dataflow, cut: Partition, carried: Carried, share: float) -> ByToken | None:
    """How a site computes its tokens one by one; None: it is an attention."""
    y = carried.y
    nodes = _own(flow, cut, y)
    if mixes_tokens(tuple(nodes)):
        return None
    fewer = FewerTokens(y)
    after: list[fx.Node] = []
    entry: fx.Node | None = None
    for node in nodes:
        if not fewer.reads(node):
            begins = _begun_from(node, y)
            if begins is None:
                continue
            # Of several the last one: what is made of a timestep for each token comes before the tokens' own.
            entry = begins
            fewer.take(entry)
        fewer.take_beside(node)
        fewer.run(node)
        after.append(node)
    if entry is None or y not in after or fewer.dim(y) != TOKENS:
        reason = "no linear of a site takes its tokens in the shape in which it gives them"
        raise MixedTokensError(reason, next(filter(operators.is_heavy, reversed(nodes)), y))
    others = [node for node in fewer.taken if node is not entry]
    before = tuple(node for node in nodes if node not in after)
    return ByToken(entry, before, tuple(after), (entry, *others), share)


def _own(flow: Dataflow, cut: Partition, y: fx.Node) -> list[fx.Node]:
    """What leads to a site's result and is left out with it, in graph order."""
    found, pending = {y}, [y]
    while pending:
        new = {node for node in flow.needs(pending.pop()) if cut.regions.get(node) is Region.DEEP} - found
        found |= new
        pending += new
    return [node for node in flow.order if node in found]


def _begun_from(node: fx.Node, y: fx.Node) -> fx.Node | None:
    """What a node takes that is heavy and takes tokens of the shape that a site gives."""
    first = node.args[0] if node.args else None
    return first if operators.is_heavy(node) and isinstance(first, fx.Node) and values.same_size(first, y) else None
