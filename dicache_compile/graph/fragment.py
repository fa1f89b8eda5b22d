"""Which function a graph is a part of, where Dynamo made several graphs of one function.

A graph break ends a graph; what comes after it is traced as a function of its own, whose name tells where it resumes.
"""

from __future__ import annotations

import re
import traceback

from torch import fx

_FRAME = re.compile(r'File "(.+)", line \d+, in (\S+)')
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.+)_at_\d+$")

Function = tuple[str, str]  # (file, name) of the function whose call Dynamo compiled


def own_function(gm: fx.GraphModule) -> Function | None:
    """The function that Dynamo compiled as this graph; what comes after a break has a name of its own."""
    for node in gm.graph.nodes:
        frame = _FRAME.search(node.stack_trace or "") if node.op.startswith("call_") else None
        if frame is not None:
            return frame.group(1), frame.group(2)
    return None


def resumed_function(gm: fx.GraphModule) -> Function | None:
    """The function that a graph goes on with after a break; None where the graph is its beginning."""
    own = own_function(gm)
    resumed = _RESUMED.match(own[1]) if own is not None else None
    return (own[0], resumed.group(1)) if own is not None and resumed is not None else None


def broken_function(gm: fx.GraphModule) -> Function | None:
    """The function that goes on after this graph, in another one; None where the graph is its end."""
    frames = frames_of_break(gm)
    if not frames:
        return None
    resumed = _RESUMED.match(frames[0].name)
    return frames[0].filename, resumed.group(1) if resumed else frames[0].name


def about_break(gm: fx.GraphModule) -> str | None:
    """Why the function goes on in another graph, where in the user's code, and what to try; None where it does not."""
    frames = frames_of_break(gm)
    if not frames:
        return None
    reason = str(getattr(gm.compile_subgraph_reason, "reason", "")).strip().partition("\n")[0]
    where = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
    return (
        f"Dynamo broke the model's graph at {where} ({reason}). torch._dynamo.config.capture_scalar_outputs and "
        "capture_dynamic_output_shape_ops may keep the blocks in one; fullgraph=True sets both, or says what is wrong"
    )


def frames_of_break(gm: fx.GraphModule) -> list[traceback.FrameSummary]:
    reason = getattr(gm, "compile_subgraph_reason", None)
    return list(reason.user_stack or ()) if reason is not None and reason.graph_break else []
