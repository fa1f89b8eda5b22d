"""Cuts the whole model out as one site: from what it is given to denoise to what it returns.

Caches that stand around a model reuse its result so (EasyCache, AB-Cache). Requires: a graph with one result. Ensures:
everything is in the deep region; x is the input of the result's shape that is denoised, where there is one.
"""

from __future__ import annotations

from torch import fx

from ..errors import NotCarriedError
from ..graph import effects, values
from ..graph.dataflow import Dataflow
from ..graph.latents import latents
from ..plan import Carried, Partition, Region, Trunk
from .partition import check_effects, is_anywhere

MODEL = "model"


def cut_model(gm: fx.GraphModule, flow: Dataflow, trunk: Trunk, form: str, measures: bool) -> Partition:
    """The partition of a graph as one site. `form` as in `Carried`; `measures`: whether something has to see x.

    Raises NotCarriedError where the graph has several results, or none of its inputs can be x and that is needed;
    EffectError where the model does more than compute.
    """
    end = flow.order[-1]
    results = [node for node in flow.needs(end) if values.tensor(node) is not None and not values.is_weight(node)]
    if len(results) != 1 or results[0].op == "placeholder":
        found = f"the model returns {len(results)} tensors, and sites='model' needs one"
        raise NotCarriedError(found, end, "leave sites as it is")
    y = results[0]
    alike = [node for node in latents(flow) if values.size_text(node) == values.size_text(y)]
    if measures and len(alike) != 1:
        found = f"{len(alike)} inputs of the model have its result's shape {values.size_text(y)}: none is known as x"
        raise NotCarriedError(found, y, "leave sites as it is, or set a schedule")
    x = alike[0] if len(alike) == 1 else y
    carried = (Carried(x, x, y, "value" if x is y or form == "value" else "residual"),)
    regions = {node: Region.DEEP for node in flow.order if not is_anywhere(node)}
    check_effects(flow, regions, carried)
    return Partition(gm, trunk, 0, regions, carried, (), effects.autocast_scopes(gm.graph), parts=MODEL)
