"""Recordings of uncached generations, and the methods that are fitted to them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Recording, Schedule, calibrate, disable_cache, enable_cache, record, summary
from dicache_compile.calibration.calibrate import changes, lags, magnitudes
from dicache_compile.estimators import ChannelAffine, HyCa, StepAffine
from dicache_compile.gates import PolynomialChange
from tests import models
from tests.contract.test_contract import STEPS
from tests.helpers.facts import fixture, tiny_model, turning

ABOUT = {"model": "a test's", "timesteps": [], "looks_at": "probe", "sites": "trunk", "form": "residual"}


def made(about: dict[str, Any] | None = None, **tensors: Tensor) -> Recording:
    """A recording of one sample and one call; tensors [steps, ...]."""
    found = {name: value.float()[None, None] for name, value in tensors.items()}
    zeros = torch.zeros_like(found["y"])
    return Recording({"x": zeros, "h": zeros, "result": zeros.flatten(3), **found}, {**ABOUT, **(about or {})})


@pytest.fixture
def model() -> models.Model:
    torch._dynamo.reset()
    return models.make(models.SingleStream)


def sampler(model: models.Model) -> Callable[[int], Tensor]:
    def run(seed: int) -> Tensor:
        with torch.no_grad():
            return [model(*models.inputs(model, step, STEPS, seed)) for step in range(STEPS)][-1]

    return run


def test_what_is_recorded_is_what_the_trunk_carries(model: models.Model) -> None:
    recording = record(model, sampler(model), samples=2, progress=False)
    assert recording.tensors["y"].shape == (2, 1, STEPS, 12, 16)
    assert recording.num_steps == STEPS
    with torch.no_grad():
        for seed, step in itertools.product(range(2), (0, 4, STEPS - 1)):
            entered = model.enter(*models.inputs(model, step, STEPS, seed))
            x = entered["x"].clone()
            probed = model.run(entered, 0, 1)
            expected = {"x": x, "h": probed["x"].clone(), "y": model.run(probed, 1, model.depth)["x"]}
            for name, value in expected.items():
                torch.testing.assert_close(recording.tensors[name][seed, 0, step], value.reshape(12, 16))
    assert recording.about["timesteps"] == pytest.approx([1 - step / STEPS for step in range(STEPS)])


def test_a_recording_keeps_no_more_than_it_may(model: models.Model) -> None:
    def guided(seed: int) -> None:  # two calls a step, and more steps than one would expect
        with torch.no_grad():
            for step in range(70):
                latents, time, prompt = models.inputs(model, step, 70, seed)
                model(latents, time, prompt)
                model(latents, time, -prompt)

    most = 2**19
    recording = record(model, guided, samples=2, most_bytes=most, progress=False)
    kept = sum(tensor.numel() * 4 for name, tensor in recording.tensors.items() if name != "result")
    assert recording.tensors["y"].shape == (2, 2, 70, 6, 16)  # of 12 rows every other one
    assert kept <= most < 2 * kept
    whole = record(model, guided, samples=2, progress=False)
    for name in ("x", "h", "y"):
        assert torch.equal(recording.tensors[name], whole.tensors[name][:, :, :, ::2])


def test_parts_of_blocks_are_recorded_one_after_another(model: models.Model) -> None:
    recording = record(model, sampler(model), samples=1, sites="mlp", progress=False)
    assert recording.tensors["y"].shape == (1, 1, STEPS, 4 * 12, 16)
    assert recording.about["form"] == "value"
    config = calibrate(recording, "smoothcache", threshold=0.3)
    assert config.asked_sites()[0].part == "mlp"
    assert 1 < len(config.all_rules()[0].schedule.deep_steps(STEPS)) < STEPS  # type: ignore[union-attr]


def test_a_recording_is_the_same_from_its_files(model: models.Model, tmp_path: Path) -> None:
    recording = record(model, sampler(model), samples=1, progress=False)
    recording.save(tmp_path / "run")
    again = Recording.load(tmp_path / "run", model)
    assert again.about == recording.about
    assert all(torch.equal(again.tensors[name], one) for name, one in recording.tensors.items())
    other = models.make(models.SingleStream, depth=5)
    with pytest.raises(ValueError, match=r"was recorded of SingleStream of \d+ parameters .* record this one"):
        Recording.load(tmp_path / "run", other)
    about = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**about, "version": 0}))
    with pytest.raises(ValueError, match="expected a recording of version 2: record again"):
        Recording.load(tmp_path / "run")


def test_the_ratios_are_magcaches() -> None:
    facts = fixture("magcache")["calibration"]
    x = torch.stack([turning(step, facts["steps"])[0] for step in range(facts["steps"])])
    recording = made(x=x, y=tiny_model(x))
    assert magnitudes(recording) == pytest.approx(facts["ratios"], abs=2e-5)  # published to five digits
    config = calibrate(recording, "magcache", threshold=0.1, max_skips=3)
    assert 1 < len(config.schedule.deep_steps(20)) < 20  # type: ignore[union-attr]


def test_the_lags_are_smoothcaches() -> None:
    (errors,) = [run["errors"] for run in fixture("smoothcache")["runs"] if "errors" in run]
    for name, part in (("blocks.0.attn1", 0), ("blocks.1.ff", 4)):
        y = torch.stack([turning((1 + 0.1 * part) * step, 30)[0] + 0.2 * part for step in range(30)])
        found = lags(made({"form": "value"}, y=y))
        for ours, theirs in zip(found, errors[name], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_polynomial_that_made_the_changes_is_found() -> None:
    coefficients = (40.0, -8.0, 1.5, 0.02)
    moved = [0.05 + 0.02 * math.sin(step) for step in range(30)]
    h = torch.tensor([1.0, *moved]).cumsum(0) * 0 + torch.tensor(
        [math.prod(1 + m for m in moved[:i]) for i in range(31)]
    )
    grown = [sum(c * m ** (3 - i) for i, c in enumerate(coefficients)) for m in moved]
    result = torch.tensor([math.prod(1 + g for g in grown[:i]) for i in range(31)])
    recording = made(
        {"looks_at": "modulated"}, y=h[:, None, None], h=h[:, None, None].double(), result=result[:, None].double()
    )
    assert changes(recording, "h")[1:] == pytest.approx(moved, rel=1e-4)
    gate = calibrate(recording, "teacache", threshold=0.2, degree=3).gate
    assert isinstance(gate, PolynomialChange)
    for m in moved:
        expected = sum(c * m ** (3 - i) for i, c in enumerate(coefficients))
        assert sum(c * m ** (3 - i) for i, c in enumerate(gate.coefficients)) == pytest.approx(expected, rel=1e-2)
    with pytest.raises(ValueError, match="record with looks_at='modulated'"):
        calibrate(made(y=h[:, None, None]), "teacache", threshold=0.2)


def test_a_planted_scale_and_shift_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    deep = (0, 3, 6)
    scale, shift = torch.rand(5, generator=generator) + 0.5, torch.randn(5, generator=generator)
    anchors = {step: torch.randn((40, 5), generator=generator) for step in deep}
    residuals = [anchors[step] if step in deep else scale * anchors[step // 3 * 3] + shift for step in range(8)]
    config = calibrate(made(y=torch.stack(residuals)), "cachequant", deep_steps=deep)
    assert isinstance(config.estimator, ChannelAffine)
    assert config.estimator.scale == pytest.approx(scale.tolist(), abs=1e-5)
    assert config.estimator.shift == pytest.approx(shift.tolist(), abs=1e-5)


def test_each_step_is_scaled_and_shifted_to_its_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((6, 40, 5), generator=generator)
    residual = torch.randn((40, 5), generator=generator)
    y = torch.stack([x[0] + residual, *((0.9 - step / 50) * (x[step] + residual) + step / 10 for step in range(1, 6))])
    # Every change is 1, so that every third step is full.
    result = torch.tensor([2.0**step for step in range(6)])[:, None]
    config = calibrate(made(x=x, y=y, result=result), "ertacache", threshold=99.0, last=0)
    assert config.schedule == Schedule.steps(0)
    assert isinstance(config.estimator, StepAffine)
    assert config.estimator.scale[1:] == pytest.approx([0.9 - step / 50 for step in range(1, 6)], abs=1e-5)
    assert config.estimator.shift[1:] == pytest.approx([step / 10 for step in range(1, 6)], abs=1e-5)


def test_the_steps_of_least_error_are_those_of_all_schedules() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn((8, 20, 3), generator=generator).cumsum(0) + 3
    recording = made(y=values)

    def total(deep: tuple[int, ...]) -> float:
        off = 0.0
        for step in range(8):
            newest = max(one for one in deep if one <= step)
            off += float((values[step] - values[newest]).abs().mean() / values[step].abs().mean())
        return off

    best = min(((0, *rest) for rest in itertools.combinations(range(1, 8), 3)), key=total)
    assert calibrate(recording, "dpcache", deep=4).schedule == Schedule.steps(*best)


def test_channels_that_move_alike_have_one_solver() -> None:
    steps = torch.arange(30.0)[:, None]
    straight = [torch.stack((a + b * steps[:, 0],) * 1, 1) for a, b in ((1.0, 0.3), (2.0, -0.2), (0.5, 0.1))]
    bent = [torch.sin(0.9 * steps + phase) * 4 for phase in (0.0, 1.0, 2.0)]
    values = torch.cat([*straight, *bent], dim=1)[:, None].expand(30, 4, 6)
    estimator = calibrate(made(y=values), "hyca", clusters=2).estimator
    assert isinstance(estimator, HyCa)
    assert estimator.of_channel[:3] == (estimator.of_channel[0],) * 3
    assert estimator.of_channel[3:] == (estimator.of_channel[3],) * 3
    assert estimator.of_channel[0] != estimator.of_channel[3]
    assert estimator.solvers[estimator.of_channel[0]] != "bdf2"  # which is not exact on a line


def test_a_fitted_config_runs(model: models.Model) -> None:
    run = sampler(model)
    recording = record(model, run, samples=1, progress=False)
    fitted = {
        "dpcache": {"deep": 4},
        "hyca": {"interval": 3},
        "cachequant": {"deep_steps": (0, 3, 6)},
        "ertacache": {"threshold": 0.5},
        "magcache": {},
    }
    for method, parameters in fitted.items():
        config = calibrate(recording, method, **parameters)
        assert isinstance(config, DiCacheConfig)
        enable_cache(model, config, compile=False)
        assert run(0).isfinite().all()
        assert {step.deep for step in summary(model).generations[-1].streams["0"]} == {True, False}
        disable_cache(model)


def test_what_cannot_be_fitted_is_refused(model: models.Model) -> None:
    with pytest.raises(ValueError, match=r"method: expected one of 'cachequant', .*, got 'fora'"):
        calibrate(made(y=torch.zeros((3, 2, 2))), "fora")
    with pytest.raises(ValueError, match="smoothcache reuses parts of blocks: record with sites='attention'"):
        calibrate(made(y=torch.ones((3, 2, 2))), "smoothcache")
    with pytest.raises(ValueError, match="nothing was recorded of the model: the function did not call it"):
        record(model, lambda seed: None, progress=False)
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        record(model, sampler(model), samples=0)
    with pytest.raises(ValueError, match="looks_at: expected 'probe' or 'modulated', got 'deep'"):
        record(model, sampler(model), looks_at="deep", progress=False)  # type: ignore[arg-type]
