"""The published FLUX script's recorded steps, reproduced by the `flux` rules (see official/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dicache_compile import DiCacheConfig, summary
from tests.helpers.traced import Traced

diffusers = pytest.importorskip("diffusers", reason="the recorded model is diffusers'")

FILE = Path(__file__).with_name("official") / "official_flux_trace.json"
TRACE = json.loads(FILE.read_text())
TENSORS = load_file(FILE.with_suffix(".safetensors"))
CASES = {case["name"]: case for case in TRACE["cases"]}
ERRORS = {"delta_y": "probe", "delta_minus": "probe_minus_input"}


def recorded_model() -> torch.nn.Module:
    model = diffusers.FluxTransformer2DModel(**TRACE["model"])
    weights = {n.removeprefix("weights."): t for n, t in TENSORS.items() if n.startswith("weights.")}
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def rules(case: dict[str, Any], engine: Any) -> DiCacheConfig:
    return DiCacheConfig.preset(
        "flux",
        threshold=case["threshold"],
        warmup_ratio=case["ret_ratio"],
        error=ERRORS[case["error"]],
        probe_depth=case["probe_depth"],
        gamma_range=tuple(case["gamma_clip"]),
        num_steps=case["num_steps"],
        engine=engine,
        lowering="eager",
        strict=True,
    )


@torch.no_grad()
def run(call: Any, case: dict[str, Any]) -> tuple[Tensor, Tensor, list[float]]:
    names = ("encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids")
    latents, steps, means = TENSORS["latents"], case["num_steps"], []
    for step in range(steps):
        timestep = torch.full((latents.shape[0],), 1 - step / steps)
        fixed = {name: TENSORS[name] for name in names}
        velocity = call(hidden_states=latents, timestep=timestep, return_dict=False, **fixed)[0]
        means.append(velocity.abs().mean().item())
        latents = latents - velocity * case["amplitude"] / steps
    return velocity, latents, means


FIRST, *OTHERS = CASES


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("calls", [FIRST, *OTHERS]),
        ("conditional", [FIRST]),
        pytest.param("cond", [FIRST], marks=pytest.mark.exhaustive),
        *(pytest.param(engine, OTHERS, marks=pytest.mark.exhaustive) for engine in ("cond", "conditional")),
    ],
)
def test_every_recorded_step_is_reproduced(engine: Any, names: list[str]) -> None:
    model = recorded_model()
    traced = Traced(model, {name: rules(CASES[name], engine) for name in names}, fullgraph=True)
    for name in names:
        assert_reproduced(name, CASES[name], model, traced.under(name))


def assert_reproduced(name: str, case: dict[str, Any], model: torch.nn.Module, call: Any) -> None:
    velocity, latents, means = run(call, case)
    ours = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in ours] == [step["computed"] for step in case["steps"]], name
    for step, recorded in zip(ours, case["steps"], strict=True):
        if "error" in recorded:
            assert step.error == pytest.approx(recorded["error"], rel=1e-4)
            assert step.accumulated == pytest.approx(recorded["accumulated"], rel=1e-4)
        expected = recorded.get("gamma")
        assert step.gamma == (pytest.approx(expected, rel=1e-4) if expected is not None else None)
    torch.testing.assert_close(latents, TENSORS[f"{name}.latents_final"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(velocity, TENSORS[f"{name}.velocity_last"], rtol=1e-4, atol=1e-4)
    recorded_means = TENSORS[f"{name}.velocity_mean_abs"]
    torch.testing.assert_close(torch.tensor(means), recorded_means.float(), rtol=1e-4, atol=1e-4)


def test_the_trace_has_cases_on_both_sides_of_every_rule() -> None:
    """A recording in which nothing is reused, or no error is near the threshold, would prove little."""
    reused = [sum(not step["computed"] for step in case["steps"]) for case in TRACE["cases"]]
    assert min(reused) == 0
    assert sum(count > 0 for count in reused) >= 6
    assert {case["error"] for case in TRACE["cases"]} == {"delta_y", "delta_minus"}
    assert {case["probe_depth"] for case in TRACE["cases"]} == {1, 2}
