"""A pipeline whose models are moved to the device when they are called, by accelerate's hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dicache_compile import dicache_backend
from tests.helpers.published import published
from tests.use.test_pipelines import flux, marks, run

accelerate = pytest.importorskip("accelerate", reason="the hooks are accelerate's")

OPTIONS = published(threshold=1e9, lowering="eager", strict=True).options()


def in_place(model: Any, **how: Any) -> None:
    model.compile(backend=dicache_backend, options=OPTIONS, **how)


def forward_alone(model: Any, **how: Any) -> None:
    model.forward = torch.compile(model.forward, backend=dicache_backend, options=OPTIONS, **how)


def offload(model: Any) -> None:
    """What `enable_model_cpu_offload` does to each model of a pipeline."""
    accelerate.cpu_offload_with_hook(model, "cpu")


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda model: (in_place(model), offload(model)), id="compiled, offloaded"),
        pytest.param(lambda model: (offload(model), in_place(model)), id="offloaded, compiled"),
        pytest.param(lambda model: (forward_alone(model, fullgraph=True), offload(model)), id="forward, full graph"),
    ],
)
def test_a_model_that_is_offloaded_is_cached_in_each_documented_order(prepare: Callable[[Any], Any]) -> None:
    pipeline, arguments = flux()
    pipeline.set_progress_bar_config(disable=True)
    prepare(pipeline.transformer.requires_grad_(False))
    run(pipeline, arguments)
    for name in ("cond", "uncond"):
        assert marks(pipeline, name) == "DDD...D."


def test_offloading_a_model_that_has_run_changes_no_result() -> None:
    """Its next call is compiled anew, as several graphs; the timestep and the streams are the same in them."""
    pipeline, arguments = flux()
    pipeline.set_progress_bar_config(disable=True)
    in_place(pipeline.transformer.requires_grad_(False))
    before = run(pipeline, arguments)
    offload(pipeline.transformer)
    assert torch.equal(run(pipeline, arguments), before)
    for name in ("cond", "uncond"):
        assert marks(pipeline, name) == "DDD...D."


def test_a_full_graph_in_place_cannot_be_had_of_a_model_that_is_offloaded() -> None:
    pipeline, arguments = flux()
    offload(pipeline.transformer)
    in_place(pipeline.transformer, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run(pipeline, arguments)
