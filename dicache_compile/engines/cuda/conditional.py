"""One CUDA graph of captured ones, with choices between some of them as values on the device say.

    P (child graph) -> choose (kernel) -> IF { D (child graph) } ELSE { R (child graph) } -> ...

A launch runs the whole step, and the host neither waits nor learns which body ran. A body may hold kernels, copies and
memory sets on the device and graphs of these; events, host functions and allocations are refused by the driver.
Source: CUDA driver API, "Conditional graph nodes"; the second body needs CUDA 12.8.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .driver import CudaError, checked, driver
from .predicate import kernel

_ASSIGN_DEFAULT = 1  # CU_GRAPH_COND_ASSIGN_DEFAULT: every launch starts from the default again
_RUN_DEEP = 1  # the default: if the kernel were ever skipped, the model itself runs
_ALLOWED = ("KERNEL", "MEMCPY", "MEMSET", "EMPTY", "GRAPH")


@dataclass(frozen=True, slots=True)
class Branch:
    """Two ways, of which a value on the device says which one runs."""

    reuse: int  # the address of a bool that an earlier part writes
    deep: tuple[Part, ...]
    reused: tuple[Part, ...]


Part: TypeAlias = "int | Branch"  # the handle (cudaGraph_t) of a captured graph, or a choice


class ConditionalGraph:
    """The composed graph. It holds clones of the captured graphs, but not their memory: keep those alive beside it."""

    def __init__(self, device: int, capability: tuple[int, int], parts: Sequence[Part]) -> None:
        """Composes parts that run one after the other, and instantiates. The device's context must be current.

        Raises CudaError if the driver refuses any of it.
        """
        api = driver()
        _check_bodies(parts)
        graph = checked(api.cuGraphCreate(0))
        try:
            _compose(graph, kernel(device, capability), parts)
            self._executable = checked(api.cuGraphInstantiate(graph, 0))
        except BaseException:
            api.cuGraphDestroy(graph)
            raise
        self._launch = api.cuGraphLaunch
        self._free = weakref.finalize(self, _free, self._executable, graph, os.getpid())
        # When the process ends, the driver may be gone before this, and frees everything by itself.
        self._free.atexit = False

    def launch(self, stream: int) -> None:
        """Runs a step on a stream (cudaStream_t) of the device. Raises CudaError."""
        (status,) = self._launch(self._executable, stream)
        if status:
            raise CudaError(f"cuGraphLaunch: {getattr(status, 'name', status)}")


def _free(executable: Any, graph: Any, process: int) -> None:
    if process != os.getpid():  # after a fork the driver must not be called
        return
    api = driver()
    # So that a capture that another thread is making does not mind.
    before = checked(api.cuThreadExchangeStreamCaptureMode(api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
    # A launch that is still running ends first; the driver sees to that.
    api.cuGraphExecDestroy(executable)
    api.cuGraphDestroy(graph)
    api.cuThreadExchangeStreamCaptureMode(before)


def _check_bodies(parts: Sequence[Part]) -> None:
    """Raises CudaError for a captured graph that cannot be a body of a conditional node."""
    for part in parts:
        if isinstance(part, Branch):
            for name, body in (("deep", part.deep), ("reused", part.reused)):
                for captured in body:
                    if isinstance(captured, int) and (reason := why_no_body(captured)):
                        raise CudaError(f"the {name} blocks cannot be a body of a conditional node: {reason}")
                _check_bodies(body)


def why_no_body(graph: int) -> str | None:
    """The reason why a captured graph cannot be a body of a conditional node, or None."""
    api = driver()
    handle = api.CUgraph(init_value=graph)
    _, count = checked(api.cuGraphGetNodes(handle, 0))
    if not count:
        return "it is empty"
    nodes, _ = checked(api.cuGraphGetNodes(handle, count))
    kinds = [checked(api.cuGraphNodeGetType(node)).name.removeprefix("CU_GRAPH_NODE_TYPE_") for node in nodes]
    refused = sorted({kind for kind in kinds if kind not in _ALLOWED})
    return f"it has nodes of kind {', '.join(refused)}" if refused else None


def _compose(graph: Any, choose: Any, parts: Sequence[Part]) -> None:
    """Adds parts to a graph, each after the one before."""
    api = driver()
    last: list[Any] = []
    for part in parts:
        if isinstance(part, Branch):
            last = [_add_branch(graph, choose, part, last)]
        else:
            last = [checked(api.cuGraphAddChildGraphNode(graph, last, len(last), api.CUgraph(init_value=part)))]


def _add_branch(graph: Any, choose: Any, branch: Branch, after: list[Any]) -> Any:
    """Adds the kernel that tells the node which way to go, and the node; the node."""
    api = driver()
    context = checked(api.cuCtxGetCurrent())
    handle = checked(api.cuGraphConditionalHandleCreate(graph, context, _RUN_DEEP, _ASSIGN_DEFAULT))
    # The driver copies the arguments when the node is added.
    arguments = (ctypes.c_uint64 * 2)(int(handle), branch.reuse)
    addresses = (ctypes.c_void_p * 2)(ctypes.addressof(arguments), ctypes.addressof(arguments) + 8)
    call = api.CUDA_KERNEL_NODE_PARAMS()
    call.func = choose
    call.gridDimX = call.gridDimY = call.gridDimZ = 1
    call.blockDimX = call.blockDimY = call.blockDimZ = 1
    call.sharedMemBytes = 0
    call.kernelParams = ctypes.addressof(addresses)
    call.extra = 0
    chosen = checked(api.cuGraphAddKernelNode(graph, after, len(after), call))
    either = api.CUgraphNodeParams()
    either.type = api.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    either.conditional.handle = handle
    either.conditional.type = api.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
    either.conditional.size = 2
    either.conditional.ctx = context
    node = checked(api.cuGraphAddNode(graph, [chosen], None, 1, either))
    # Not before the node is added: cuda-bindings 13.5 reads a null pointer there.
    for body, parts in zip(either.conditional.phGraph_out, (branch.deep, branch.reused), strict=True):
        _compose(body, choose, parts)
    return node
