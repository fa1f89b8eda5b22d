"""What the checks share: a small FLUX of full width, its engine and `calls` on the same pieces, and uneven inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, dicache_backend, reset, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.engines.captured import CapturedEngine, Rung

from .cases import Case, Run, build, case_named, share
from .device import Device

STEPS = 20  # of a generation
# Errors of the uneven walk below lie on both sides of the threshold, so that the decision is the data's.
MIXED = {
    "error": "probe",
    "order": 1,
    "gamma_range": (1.0, 1.5),
    "joint": False,
    "threshold": 0.1,
    "warmup_steps": 3,
    "max_consecutive_skips": 3,
    "streams": 1,
}
SIZES = (0.003, 0.03, 0.3)  # of a step of the walk, beside latents of size 1

Call = Callable[..., tuple[Tensor, ...]]


class Kit:
    """One process's checks on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        case = case_named("flux512", device.tiny)
        fewer = {"num_layers": 2, "num_single_layers": 3}
        self.case: Case = replace(case, config={**case.config, **fewer})

    def model(self) -> nn.Module:
        return build(self.case, self.device)

    def engine(self, model: nn.Module, name: str, **changed: Any) -> Any:
        """A model with these weights, compiled by ours."""
        config = DiCacheConfig(**{**MIXED, "engine": name, **changed})
        return torch.compile(share(model), backend=dicache_backend, fullgraph=True, options=config.options())

    def walk(self, steps: int, seed: int = 0, **other: Any) -> Iterator[dict[str, Any]]:
        """The arguments of that many steps: generations of latents that now hardly move and now jump."""
        run = Run(self.case, self.device, STEPS)
        sizes = random.Random(seed)
        generator = torch.Generator(self.device.kind).manual_seed(seed)
        latents = run.latents.clone()
        for step in range(steps):
            yield {**run.arguments(step % STEPS, latents), **other}
            moved = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
            latents = latents + sizes.choice(SIZES) * moved

    def noise(self, seed: int) -> None:
        """Uses memory that was freed, and leaves garbage there."""
        sizes = random.Random(seed)
        held = []
        for _ in range(sizes.randint(1, 6)):
            rows = sizes.choice((1, 7, 64, 512)) * (1 if self.device.tiny else 8)
            garbage = torch.full((rows, sizes.choice((33, 1024))), float("nan"), device=self.device.kind)
            held.append(garbage @ garbage.T)
        del held
        if sizes.random() < 0.2:
            self.device.settle()

    def agree(self, ours: nn.Module, steps: int, seed: int = 0, noisy: bool = False) -> str:
        """Runs the same steps on the model's engine and on `calls`; "" where every output is the same to the last bit.

        Both have the same compiled pieces: what Inductor makes of one graph twice may differ in the last bit.
        """
        # One after the other, and looked at in the end: ours is to run ahead of the device, and its outputs to last.
        mine = self.outputs(ours, steps, seed, noisy)
        with called(ours):
            theirs = self.outputs(ours, steps, seed, noisy)
        return differences(mine, theirs)

    @torch.no_grad()
    def outputs(self, call: Call, steps: int, seed: int = 0, noisy: bool = False) -> list[Tensor]:
        outputs = []
        for step, arguments in enumerate(self.walk(steps, seed)):
            if noisy:
                self.noise(step)
            outputs.append(call(**arguments)[0])
        return outputs


def differences(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Where outputs are not the same to the last bit; nothing where all are."""
    pairs = list(enumerate(zip(mine, theirs, strict=True)))
    apart = [(step, (a.float() - b.float()).abs().max().item()) for step, (a, b) in pairs if not torch.equal(a, b)]
    if apart:
        return f"{len(apart)} of {len(pairs)} steps differ; the first is {apart[0][0]}, by up to {apart[0][1]:.3g}"
    return ""


@contextmanager
def called(compiled: nn.Module) -> Iterator[None]:
    """Inside, a model that has run before runs its compiled pieces on `calls`, with a new state.

    Looks into the engine's own objects, and so is bound to how they are written.
    """
    engine = sessions_of(compiled)[-1].last_engine
    reset(compiled)
    if isinstance(engine, CapturedEngine):
        before = engine._first, engine._rungs
        engine._first, engine._rungs = Rung("calls", "asked for"), {}
    try:
        yield
        assert engine.name == "calls"
    finally:
        if isinstance(engine, CapturedEngine):
            engine._first, engine._rungs = before
        reset(compiled)


def branches(compiled: nn.Module) -> tuple[int, int]:
    """How many steps of the last generations ran deep, and how many reused."""
    recorded = [step for made in summary(compiled).generations for steps in made.streams.values() for step in steps]
    deep = sum(step.deep for step in recorded)
    return deep, len(recorded) - deep


def verdict(difference: str, compiled: nn.Module) -> tuple[bool, str]:
    """Equal, and over both branches."""
    deep, reused = branches(compiled)
    seen = f"{deep} deep and {reused} reused steps"
    return not difference and min(deep, reused) > 0, difference or seen
