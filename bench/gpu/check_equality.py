"""Checks that an engine gives bit for bit what `calls` gives of the same pieces, whatever happens between steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dicache_compile import explain, stream

from .cases import share
from .device import Cpu
from .float8 import with_float8
from .kit import STEPS, Kit, branches, called, differences, verdict

MANY = 200
Verdict = tuple[bool | None, str]


def both_branches(kit: Kit, engine: str, **changed: Any) -> Verdict:
    ours = kit.engine(kit.model(), engine, **changed)
    return verdict(kit.agree(ours, 2 * STEPS), ours)


def attention(kit: Kit, engine: str, backend: SDPBackend) -> Verdict:
    """Uncompiled, because there the attention's own kernel is what is captured."""
    torch._dynamo.reset()
    with sdpa_kernel(backend):
        ours = kit.engine(kit.model(), engine, lowering="eager")
        return verdict(kit.agree(ours, STEPS), ours)


def float8_products(kit: Kit, engine: str) -> Verdict:
    """Uncompiled too, because there cuBLAS's own kernel is captured."""
    torch._dynamo.reset()
    ours = kit.engine(with_float8(kit.model()), engine, lowering="eager")
    return verdict(kit.agree(ours, STEPS), ours)


def allocation_noise(kit: Kit, engine: str) -> Verdict:
    ours = kit.engine(kit.model(), engine)
    return verdict(kit.agree(ours, MANY, seed=7, noisy=True), ours)


@torch.no_grad()
def two_streams(kit: Kit, engine: str) -> Verdict:
    """Guidance in two calls a step; the outputs of all steps are kept, and none may change later."""
    ours = kit.engine(kit.model(), engine)
    kept = _both(kit, ours)
    copies = [output.clone() for output in kept]
    with called(ours):
        expected = _both(kit, ours)
    different = differences(kept, expected)
    changed = sum(not torch.equal(output, copy) for output, copy in zip(kept, copies, strict=True))
    passed = not different and not changed and min(branches(ours)) > 0
    return passed, different or f"{len(kept)} outputs, of which {changed} changed afterwards"


def _both(kit: Kit, model: Any) -> list[torch.Tensor]:
    prompt = next(iter(kit.walk(1)))["encoder_hidden_states"]
    walks = {"cond": kit.walk(STEPS, 1), "uncond": kit.walk(STEPS, 2, encoder_hidden_states=prompt.flip(1))}
    outputs = []
    for step in range(STEPS):
        for name, walk in walks.items():
            kit.noise(step)
            with stream(name):
                outputs.append(model(**next(walk))[0])
    return outputs


@torch.no_grad()
def state_in_host_memory(kit: Kit, engine: str) -> Verdict:
    """Three streams in turn of which two have state on the device, beside each stream alone."""
    ours = kit.engine(kit.model(), engine, device_streams=2, streams="auto")
    names = ("a", "b", "c")

    def walks() -> dict[str, Iterator[dict[str, Any]]]:
        return {name: kit.walk(STEPS, seed) for seed, name in enumerate(names)}

    def stepped(name: str, arguments: dict[str, Any]) -> torch.Tensor:
        with stream(name):
            output: torch.Tensor = ours(**arguments)[0]
        return output

    turns = walks()
    mine = [stepped(name, next(turns[name])) for _ in range(STEPS) for name in names]
    with called(ours):
        alone = [[stepped(name, arguments) for arguments in walk] for name, walk in walks().items()]
    theirs = [outputs[step] for step in range(STEPS) for outputs in alone]
    return verdict(differences(mine, theirs), ours)


@torch.no_grad()
def no_syncs(kit: Kit, engine: str) -> Verdict:
    ours = kit.engine(kit.model(), engine)
    for arguments in kit.walk(STEPS):
        ours(**arguments)
    walk = list(kit.walk(STEPS, seed=3))
    kit.device.synchronize()
    with kit.device.refusing_syncs():
        for arguments in walk:
            ours(**arguments)
    return min(branches(ours)) > 0, f"{STEPS} steps in which a wait would have been an error"


def weights_changed(kit: Kit, engine: str, how: str) -> Verdict:
    """Weights changed after some steps: the engine must give the new model's outputs from then on."""
    model = kit.model()
    ours = kit.engine(model, engine)
    kit.outputs(ours, 1)
    with called(ours):
        theirs = kit.outputs(ours, STEPS)
    mine = kit.outputs(ours, STEPS)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if how == "in place":
                parameter.mul_(1 + 0.1 * (number % 3))
            elif how == "data replaced":
                old = parameter.data
                parameter.data = old.clone()
                old.fill_(float("nan"))  # whoever still reads there is found out
        if how == "moved":
            model.to("cpu")
            kit.noise(1)
            model.to(kit.device.kind)
    kit.noise(2)
    mine += kit.outputs(ours, STEPS, seed=5, noisy=True)  # by what was captured before
    with called(ours):
        theirs += kit.outputs(ours, STEPS, seed=5, noisy=True)
    return verdict(differences(mine, theirs), ours)


def fails_aloud(kit: Kit, engine: str) -> Verdict:
    """A CPU has no CUDA graphs: an engine that is asked for by name must refuse it."""
    there = Kit(Cpu())
    model = there.model()
    try:
        with torch.no_grad():
            compiled = there.engine(model, engine, lowering="eager")
            for arguments in there.walk(STEPS):
                compiled(**arguments)
    except Exception as error:
        text = " ".join(str(error).split())
        return f"engine='{engine}' cannot run this model" in text, f"{type(error).__name__}: {text}"[:200]
    return False, "it ran"


@torch.no_grad()
def best_by_itself(kit: Kit, engine: str) -> Verdict:
    """`engine="auto"` ends on this engine, and `explain` says so."""
    compiled = kit.engine(kit.model(), "auto")
    for arguments in kit.walk(STEPS):
        compiled(**arguments)
    told = explain(compiled)
    return told.engine == engine, " | ".join(" ".join(line.split()) for line in str(told).splitlines()[1:])


def compiled_twice(kit: Kit) -> Verdict:
    """Whether PyTorch's own compiler gives the same bits twice: noted, for it is nothing that an engine can change."""
    model = kit.model()
    one, other = (kit.outputs(torch.compile(share(model), fullgraph=True), 2) for _ in range(2))
    return None, differences(one, other) or "the same bits"


def equality(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    """(engine, name, check) of every engine, compiled and not."""
    yield "torch.compile", "one model compiled twice", lambda: compiled_twice(kit)
    for engine in kit.device.engines:
        for lowering in ("inductor", "eager"):
            if engine != "calls" or kit.device.tiny:
                yield (
                    engine,
                    f"E1 both branches, {lowering}",
                    lambda e=engine, x=lowering: both_branches(kit, e, lowering=x),
                )


def running(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    """What else the best engine must do with weights that stay as they are."""
    best = kit.device.best
    yield best, "no host waits", lambda: no_syncs(kit, best)
    yield best, "E9 two streams, outputs kept", lambda: two_streams(kit, best)
    yield best, "state in host memory", lambda: state_in_host_memory(kit, best)
    yield best, "E7 allocation noise", lambda: allocation_noise(kit, best)
    yield best, "auto takes it, and explain says so", lambda: best_by_itself(kit, best)
    yield best, "E1 both branches, float8 state", lambda: both_branches(kit, best, state_dtype=torch.float8_e4m3fn)


def changes(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    """What happens to the weights, other devices, and attention's kernels."""
    best = kit.device.best
    for how in ("in place", "moved", "data replaced"):
        yield best, f"weights {how}", lambda how=how: weights_changed(kit, best, how)
    for engine in ("conditional", "graphs"):
        yield engine, "refuses a CPU aloud", lambda e=engine: fails_aloud(kit, e)
    for backend in kit.device.attention:
        yield best, f"E5 {backend.name}", lambda b=backend: attention(kit, best, b)
    yield best, "E5 float8 products", lambda: float8_products(kit, best)


def expandable(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    """In a process whose allocator has expandable segments."""
    best = kit.device.best
    yield best, "E1 expandable segments", lambda: both_branches(kit, best)
    yield best, "E7 expandable segments", lambda: allocation_noise(kit, best)
