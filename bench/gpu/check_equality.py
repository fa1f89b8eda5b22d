"""Checks that an engine gives bit for bit what `calls` gives, whatever happens between its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dicache_compile import explain, stream

from .device import Cpu
from .float8 import with_float8
from .kit import STEPS, Kit, branches, verdict

MANY = 200
Verdict = tuple[bool, str]


def both_branches(kit: Kit, engine: str, **changed: Any) -> Verdict:
    model = kit.model()
    ours = kit.engine(model, engine, **changed)
    return verdict(kit.agree(ours, kit.reference(model, **changed), 2 * STEPS), ours)


def attention(kit: Kit, engine: str, backend: SDPBackend) -> Verdict:
    """Uncompiled, because there the attention's own kernel is what is captured."""
    torch._dynamo.reset()
    model = kit.model()
    with sdpa_kernel(backend):
        ours = kit.engine(model, engine, lowering="eager")
        return verdict(kit.agree(ours, kit.reference(model, lowering="eager"), STEPS), ours)


def float8_products(kit: Kit, engine: str) -> Verdict:
    """Uncompiled too, because there cuBLAS's own kernel is captured."""
    torch._dynamo.reset()
    model = with_float8(kit.model())
    ours = kit.engine(model, engine, lowering="eager")
    return verdict(kit.agree(ours, kit.reference(model, lowering="eager"), STEPS), ours)


def allocation_noise(kit: Kit, engine: str) -> Verdict:
    model = kit.model()
    ours = kit.engine(model, engine)
    return verdict(kit.agree(ours, kit.reference(model), MANY, seed=7, noisy=True), ours)


@torch.no_grad()
def two_streams(kit: Kit, engine: str) -> Verdict:
    """Guidance in two calls a step; the outputs of all steps are kept, and none may change later."""
    model = kit.model()
    ours, reference = kit.engine(model, engine), kit.reference(model)
    prompt = next(iter(kit.walk(1)))["encoder_hidden_states"]
    walks = {"cond": kit.walk(STEPS, 1), "uncond": kit.walk(STEPS, 2, encoder_hidden_states=prompt.flip(1))}
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    different = 0
    for step in range(STEPS):
        for name, walk in walks.items():
            arguments = next(walk)
            kit.noise(step)
            with stream(name):
                output, expected = ours(**arguments)[0], reference(**arguments)[0]
            different += not torch.equal(output, expected)
            kept.append((output, expected))
    changed = sum(not torch.equal(output, expected) for output, expected in kept)
    first = torch.equal(*kept[0])
    detail = f"{different} of {len(kept)} outputs differ when made, {changed} at the end; the first is kept: {first}"
    return different == changed == 0 and min(branches(ours)) > 0, detail


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
    """The same weights changed after some steps: both engines must give the new model's outputs."""
    model = kit.model()
    ours, reference = kit.engine(model, engine), kit.reference(model)
    before = kit.agree(ours, reference, STEPS)
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
    after = kit.agree(ours, reference, STEPS, seed=5, noisy=True)
    passed, detail = verdict(before or after, ours)
    return passed, detail


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


def equality(kit: Kit) -> Iterator[tuple[str, str, Any]]:
    """(engine, name, check) of every engine, compiled and not; of `calls` to see that it agrees with itself."""
    for engine in kit.device.engines:
        for lowering in ("inductor", "eager"):
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
    yield best, "E7 allocation noise", lambda: allocation_noise(kit, best)
    yield best, "auto takes it, and explain says so", lambda: best_by_itself(kit, best)
    yield best, "E1 both branches, Triton kernels", lambda: both_branches(kit, best, kernels="triton")
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
