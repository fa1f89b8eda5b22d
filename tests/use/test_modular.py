"""Modular pipelines of diffusers, whose loops are blocks: each run is heard, and how many steps it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, generation, summary
from dicache_compile.calls.runs import current_run
from tests import models
from tests.helpers.published import published

modular = pytest.importorskip("diffusers.modular_pipelines.modular_pipeline", reason="the blocks are diffusers'")
guiders = pytest.importorskip("diffusers.guiders", reason="the guiders are diffusers'")
utils = pytest.importorskip("diffusers.modular_pipelines.modular_pipeline_utils")

STEPS = 10


class Denoise(modular.ModularPipelineBlocks):  # type: ignore[misc]
    """One step of a loop: runs the model, moves the latents."""

    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> Any:
        _, _, prompt = models.inputs(components.model, 0, STEPS)
        block_state.latents = block_state.latents - 0.1 * components.call(block_state.latents, t.expand(2), prompt)
        return components, block_state


class Loop(modular.LoopSequentialPipelineBlocks):  # type: ignore[misc]
    """As diffusers writes them."""

    block_classes: ClassVar[list[type]] = [Denoise]
    block_names: ClassVar[list[str]] = ["denoise"]

    @property
    def description(self) -> str:
        return ""

    @property
    def loop_inputs(self) -> list[Any]:
        return [utils.InputParam(name) for name in ("latents", "timesteps", "num_inference_steps")]

    @property
    def loop_intermediate_outputs(self) -> list[Any]:
        return [utils.OutputParam("latents")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> Any:
        block_state = self.get_block_state(state)
        self.run(components, block_state)
        self.set_block_state(state, block_state)
        return components, state

    def run(self, components: Any, block_state: Any) -> None:
        with self.progress_bar(total=block_state.num_inference_steps):
            self.steps(components, block_state)

    def steps(self, components: Any, block_state: Any) -> None:
        for i, t in enumerate(block_state.timesteps):
            self.loop_step(components, block_state, i=i, t=t)


class Barless(Loop):
    def run(self, components: Any, block_state: Any) -> None:
        self.steps(components, block_state)


class Guided(Loop):
    """Calls its blocks by itself, and says where it stands to a guider alone."""

    def run(self, components: Any, block_state: Any) -> None:
        for i, t in enumerate(block_state.timesteps):
            components.guider.set_state(step=i, num_inference_steps=block_state.num_inference_steps, timestep=t)
            self.sub_blocks["denoise"](components, block_state, i=i, t=t)


class Chunked(Guided):
    """One bar over two chunks, each of which is a run."""

    def run(self, components: Any, block_state: Any) -> None:
        chunks = 3
        with self.progress_bar(total=chunks * block_state.num_inference_steps):
            for _ in range(chunks):
                super().run(components, block_state)


class Pipeline(modular.ModularPipeline):  # type: ignore[misc]
    """With a model that diffusers neither loads nor saves."""

    def __init__(self, blocks: Any, model: models.Model, call: Any) -> None:
        self._blocks, self.model, self.call = blocks, model, call
        self.guider = guiders.ClassifierFreeGuidance()


def made(loop: type[Loop], **config: Any) -> Pipeline:
    model = models.make(models.SingleStream)
    settings = {"lowering": "eager", "threshold": float("inf"), "strict": True, **config}
    call = torch.compile(model, backend=dicache_backend, options=published(**settings).options())
    blocks = loop()
    blocks.set_progress_bar_config(disable=True)
    return Pipeline(blocks, model, call)


def run(pipeline: Pipeline, steps: int = STEPS, calls: int | None = None) -> Tensor:
    """A run of that many steps, of that many calls where the scheduler makes more."""
    latents = models.inputs(pipeline.model, 0, STEPS)[0]
    timesteps = torch.linspace(1, 0.1, calls or steps)
    result: Tensor = pipeline(latents=latents, timesteps=timesteps, num_inference_steps=steps, output="latents")
    return result


def decisions(pipeline: Pipeline) -> list[str]:
    runs = summary(pipeline.model).generations
    return ["".join(".D"[step.deep] for step in steps) for run in runs for steps in run.streams.values()]


@pytest.mark.parametrize("loop", [Loop, Barless, Guided])
def test_every_kind_of_loop_tells_its_runs_and_their_steps(loop: type[Loop]) -> None:
    pipeline = made(loop, warmup_steps=0, warmup_ratio=0.2, final_steps=2, max_consecutive_skips=None)
    first = run(pipeline)
    run(pipeline, steps=6)
    assert torch.equal(run(pipeline), first)
    assert decisions(pipeline) == ["DD......DD", "D...DD", "DD......DD"]
    assert current_run() is None


def test_the_presets_run_in_modular_pipelines() -> None:
    pipeline = made(Loop)
    for name in ("flux", "hunyuan", "wan"):
        torch._dynamo.reset()
        options = DiCacheConfig.preset(name, lowering="eager", threshold=float("inf")).options()
        pipeline.call = torch.compile(pipeline.model, backend=dicache_backend, options=options)
        run(pipeline)
        assert decisions(pipeline)[-1].startswith("DD")


def test_a_run_has_as_many_steps_as_its_scheduler_makes_calls() -> None:
    pipeline = made(Loop, warmup_steps=1, final_steps=1, max_consecutive_skips=None)
    run(pipeline, steps=5, calls=9)
    assert decisions(pipeline) == ["D.......D"]


def test_each_chunk_under_one_bar_is_a_run() -> None:
    pipeline = made(Chunked, warmup_steps=1, final_steps=1, max_consecutive_skips=None)
    run(pipeline, steps=5)
    assert decisions(pipeline) == ["D...D"] * 3
    assert current_run() is None


def test_a_run_that_fails_is_over_and_one_around_it_goes_on() -> None:
    pipeline = made(Guided, final_steps=1)
    failing = SimpleNamespace(left=3)

    def call(*args: Tensor) -> Tensor:
        failing.left -= 1
        if not failing.left:
            raise RuntimeError("given up")
        return args[0]

    working, pipeline.call = pipeline.call, call
    with generation():
        outer = current_run()
        with pytest.raises(RuntimeError, match="given up"):
            run(pipeline)
        assert current_run() is outer
        pipeline.call = working
        run(pipeline)
    assert decisions(pipeline) == ["DDD...D..D"]
    assert current_run() is None
