"""A tuned schedule with fitted weights, for a small model and a sampler of the test's own."""

from __future__ import annotations

import inspect
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, disable_cache, enable_cache, summary, tune
from dicache_compile.calibration.clusters import clusters, features
from dicache_compile.calibration.quality import psnr, values
from dicache_compile.calibration.rehearsal import Rehearsal, rehearse
from dicache_compile.calibration.search import refit, search
from dicache_compile.calibration.tuned import Tuned
from dicache_compile.choosing import config_of
from dicache_compile.estimators import LearnedTable, Newton, Reuse
from tests import models

STEPS = 8
CUT = DiCacheConfig(schedule=Schedule.every(2), estimator=Reuse())


@pytest.fixture
def model() -> models.Model:
    torch._dynamo.reset()
    return models.make(models.SingleStream)


def sampler(model: models.Model, guidance: float | None = None, noisy: bool = False) -> Callable[[int], Tensor]:
    """An Euler sampler over uneven steps, perhaps with guidance by a second call."""
    dtype = next(model.parameters()).dtype

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn((1, 6, 4), generator=generator).to(dtype)
        prompts = torch.randn((2, 1, 3, 4), generator=generator).to(dtype)
        times = [1 - (step / STEPS) ** 1.5 for step in range(STEPS + 1)]
        with torch.no_grad():
            for now, after in itertools.pairwise(times):
                timestep = torch.tensor([now])
                velocity = model(latents, timestep, prompts[0])
                if guidance is not None:
                    other = model(latents, timestep, prompts[1])
                    velocity = other + guidance * (velocity - other)
                latents = latents + (after - now) * velocity
                if noisy:
                    latents = latents + 0.1 * torch.randn(latents.shape, generator=generator).to(dtype)
        return latents

    return run


def rehearsed(model: models.Model, run: Callable[[int], Tensor], seeds: range = range(3)) -> Rehearsal:
    return rehearse(model, run, seeds, CUT)


def test_the_samplers_factors_are_read_from_the_recording(model: models.Model) -> None:
    rehearsal = rehearsed(model, sampler(model, guidance=3.0))
    times = [1 - (step / STEPS) ** 1.5 for step in range(STEPS + 1)]
    for step, factors in enumerate(rehearsal.factors):
        length = times[step + 1] - times[step]
        assert factors == pytest.approx((1.0, 3 * length, -2 * length), abs=1e-5)
    assert (rehearsal.num_steps, len(rehearsal.takes[0].steps[0])) == (STEPS, 2)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_what_is_returned_may_be_clipped(model: models.Model, guidance: float | None) -> None:
    run = sampler(model, guidance)
    clipped, whole = rehearsed(model, lambda seed: run(seed).clamp(-0.5, 0.5)), rehearsed(model, run)
    assert len(clipped.factors) == STEPS - 1
    assert clipped.factors == whole.factors[:-1]
    tuned = tune(model, lambda seed: run(seed).clamp(-0.5, 0.5), deep=4, samples=3, trials=2, checks=2, progress=False)
    assert min(tuned.psnrs) > 20


@pytest.mark.parametrize("of_channel", [(), (0, 1, 2, 1) * 4], ids=["one row", "clusters"])
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_what_is_rehearsed_is_what_a_cached_run_gives(
    model: models.Model, guidance: float | None, of_channel: tuple[int, ...]
) -> None:
    run = sampler(model, guidance)
    deep = (0, 2, 5)
    plainly = rehearsed(model, run)
    rehearsal = replace(plainly, of_channel=of_channel)
    way = refit(rehearsal, deep)
    if of_channel:
        assert way.error < refit(plainly, deep).error - 1
    again = refit(rehearsal, deep, way.rows)
    assert again.error == pytest.approx(way.error, abs=1e-6)
    plain = {seed: run(seed) for seed in range(3)}
    enable_cache(model, config_of(way, STEPS, of_channel), compile=False)
    # The last state's latents are how far the result is off.
    for seed, state in zip(range(3), way.states, strict=True):
        torch.testing.assert_close(run(seed) - plain[seed], state.latents, rtol=0, atol=2e-5)
    records = summary(model).generations[-1].streams.values()
    assert all([step.deep for step in one] == [step in deep for step in range(STEPS)] for one in records)
    disable_cache(model)


def test_a_model_of_half_precision_is_rehearsed_to_its_rounding() -> None:
    torch._dynamo.reset()
    model = models.make(models.SingleStream, torch.bfloat16)
    run, deep = sampler(model), (0, 2, 5)
    way = refit(rehearsed(model, run), deep)
    plain = {seed: run(seed) for seed in range(3)}
    enable_cache(model, config_of(way, STEPS), compile=False)
    for seed, state in zip(range(3), way.states, strict=True):
        # Each of the steps rounds the latents, whose size is about 1, once in each of both runs.
        bound = 2 * STEPS * torch.finfo(torch.bfloat16).eps * plain[seed].float().abs().max().item()
        assert (run(seed).float() - plain[seed].float() - state.latents).abs().max().item() <= bound
    disable_cache(model)


def scheduled(model: models.Model, name: str, **settings: Any) -> Callable[[int], Tensor]:
    """A loop around one of diffusers' schedulers, with guidance."""
    diffusers = pytest.importorskip("diffusers")
    dtype = next(model.parameters()).dtype

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        scheduler = getattr(diffusers, name)(**settings)
        scheduler.set_timesteps(STEPS)
        latents = torch.randn((1, 6, 4), generator=generator).to(dtype)
        prompts = torch.randn((2, 1, 3, 4), generator=generator).to(dtype)
        own = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                given = latents
                if hasattr(scheduler, "scale_model_input"):
                    given = scheduler.scale_model_input(latents, timestep)
                time = timestep[None].float() / 1000
                cond, uncond = (model(given, time, prompt) for prompt in prompts)
                result = 0.3 * (uncond + 2.0 * (cond - uncond))
                latents = scheduler.step(result, timestep, latents, return_dict=False, **own)[0].to(dtype)
        return latents

    return run


FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
# What people sample Wan, SD3, PixArt and DiT with: of the second and the third order, and with noise on each step.
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", FLOW),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("LCMScheduler", {"original_inference_steps": 2 * STEPS}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
]


@pytest.mark.parametrize(("name", "settings"), SAMPLERS, ids=lambda one: one if isinstance(one, str) else None)
def test_samplers_that_look_back_or_add_noise_are_rehearsed_as_they_run(
    model: models.Model, name: str, settings: dict[str, Any]
) -> None:
    run, deep, seeds = scheduled(model, name, **settings), (0, 2, 3, 6), range(2)
    rehearsal = rehearsed(model, run, seeds)
    way = refit(rehearsal, deep)
    plain = {seed: run(seed) for seed in seeds}
    enable_cache(model, config_of(way, STEPS), compile=False)
    for seed, state in zip(seeds, way.states, strict=True):
        off = run(seed) - plain[seed]
        assert off.norm() > 1e-3 * plain[seed].norm()  # or it would say nothing
        assert (off - state.latents).norm() <= 1e-3 * off.norm() + 2e-5 * plain[seed].norm()
    disable_cache(model)


@pytest.mark.parametrize("noisy", [True, False])
def test_a_noisy_sampler_in_half_precision_is_rehearsed_to_its_rounding(noisy: bool) -> None:
    torch._dynamo.reset()
    model = models.make(models.SingleStream, torch.bfloat16)
    run, deep = sampler(model, noisy=noisy), (0, 2, 5)
    way = refit(rehearsed(model, run), deep)
    plain = {seed: run(seed) for seed in range(3)}
    enable_cache(model, config_of(way, STEPS), compile=False)
    for seed, state in zip(range(3), way.states, strict=True):
        # Each of the steps rounds the latents, whose size is about 1, once in each of both runs.
        bound = 2 * STEPS * torch.finfo(torch.bfloat16).eps * plain[seed].float().abs().max().item()
        assert (run(seed).float() - plain[seed].float() - state.latents).abs().max().item() <= bound
    disable_cache(model)


class Both(models.TwoStream):
    """Its blocks' text is read after them, too: they give two values."""

    def leave(self, carried: models.Carried) -> Tensor:
        return super().leave({**carried, "x": carried["x"] + carried["text"].mean(1, keepdim=True)})


def test_a_trunk_that_gives_two_values_has_weights_for_both_together() -> None:
    torch._dynamo.reset()
    model = models.make(Both)
    run, deep = sampler(model), (0, 2, 5)
    rehearsal = rehearsed(model, run)
    assert len(rehearsal.pieces.carried) == 2
    way = refit(rehearsal, deep)
    plain = {seed: run(seed) for seed in range(3)}
    enable_cache(model, config_of(way, STEPS), compile=False)
    for seed, state in zip(range(3), way.states, strict=True):
        torch.testing.assert_close(run(seed) - plain[seed], state.latents, rtol=0, atol=2e-5)
    disable_cache(model)
    enable_cache(model, schedule=Schedule.steps(*deep), estimator=Reuse(), num_steps=STEPS, compile=False)
    for seed, state in zip(range(3), way.states, strict=True):
        assert (run(seed) - plain[seed]).norm() > 2 * state.latents.norm()
    disable_cache(model)


def test_fitted_weights_are_nearer_than_a_polynomial_on_other_seeds(model: models.Model) -> None:
    run, deep = sampler(model), (0, 2, 5)
    way = refit(rehearsed(model, run, range(6)), deep)

    def mean_psnr(config: DiCacheConfig) -> float:
        plain = [run(seed) for seed in range(20, 26)]
        enable_cache(model, config, compile=False)
        found = [psnr(run(20 + at).double(), one.double()) for at, one in enumerate(plain)]
        disable_cache(model)
        return sum(found) / len(found)

    steps = Schedule.steps(*deep)
    fitted = mean_psnr(config_of(way, STEPS))
    others = [mean_psnr(DiCacheConfig(schedule=steps, estimator=one, num_steps=STEPS)) for one in (Reuse(), Newton(1))]
    assert fitted > max(others) + 1


def test_channels_that_move_alike_are_one_cluster() -> None:
    steps = torch.arange(8.0)[:, None, None]
    ways = torch.stack([torch.sin(steps), steps**2, torch.sin(steps), steps**2, 5 * steps**2], -1)[..., 0, :]
    noise = torch.randn((8, 30, 5), generator=torch.Generator().manual_seed(0))
    found = clusters(features(ways + 0.01 * noise), 3).tolist()
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert len(set(found)) == 3


def test_a_search_finds_a_schedule_for_each_number_of_deep_steps(model: models.Model) -> None:
    found = search(rehearsed(model, sampler(model)), most=5, width=4)
    for count in (2, 3, 4, 5):
        best = found[count][0]
        assert len(best.deep) == count
        assert len(best.rows) == STEPS
        assert [way.error for way in found[count]] == sorted(way.error for way in found[count])
        if count > 2:
            assert best.error < found[count - 1][0].error


def test_tuning_gives_a_config_and_what_it_does_on_seeds_of_its_own(model: models.Model, tmp_path: Path) -> None:
    run = sampler(model)
    before = run(0)
    tuned = tune(model, run, deep=3, samples=6, trials=2, checks=3, width=3, progress=False)
    assert torch.equal(run(0), before)  # the model is as it was
    assert (tuned.deep, tuned.num_steps, len(tuned.psnrs)) == (3, STEPS, 3)
    assert isinstance(tuned.config.estimator, LearnedTable)
    assert tuned.config.estimator.clusters == 4  # of 16 channels
    assert "3 of 8 steps run deep: 0, " in str(tuned)
    assert tuned.uncertainty == pytest.approx(stdev(tuned.psnrs) / 3**0.5)
    assert f"dB in the mean (+- {tuned.uncertainty:.1f})" in str(tuned)
    plain = [run(seed) for seed in range(8, 11)]
    enable_cache(model, tuned.config, compile=False)
    measured = tuple(psnr(run(8 + at).double(), one.double()) for at, one in enumerate(plain))
    assert measured == pytest.approx(tuned.psnrs)
    disable_cache(model)
    file = tuned.save(tmp_path / "tuned.json")
    assert Tuned.load(file, model) == tuned
    with pytest.raises(ValueError, match=r"was tuned for SingleStream of \d+ parameters .* tune this one"):
        Tuned.load(file, models.make(models.SingleStream, depth=5))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected what Tuned\.save wrote, of version 2: tune again"):
        Tuned.load(tmp_path / "other.json")
    again = tune(model, run, deep=3, samples=6, trials=2, checks=3, width=3, progress=False)
    assert (again.config, again.psnrs) == (tuned.config, tuned.psnrs)
    drawn = ElementTree.parse(tuned.plot(tmp_path / "trade.svg")).getroot()
    titles = [one.text or "" for one in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("3 deep steps: ") for title in titles)


@pytest.mark.exhaustive
def test_an_aim_may_be_a_speed_or_a_quality(model: models.Model) -> None:
    run = sampler(model)
    tuned = tune(model, run, psnr=30.0, samples=2, trials=1, checks=2, width=2, progress=False)
    assert tuned.psnr >= 30
    fast = tune(model, run, speedup=1.2, samples=2, trials=1, checks=2, width=2, progress=False)
    assert fast.speedup >= 1.2
    assert fast.deep < STEPS


@pytest.mark.parametrize(
    ("aims", "message"),
    [
        ({}, "expected one aim, speedup, psnr or deep, got none"),
        ({"deep": 3, "psnr": 40.0}, "expected one aim, speedup, psnr or deep, got psnr and deep"),
        ({"deep": 8}, "deep: expected 1 to 7 of 8 steps, got 8"),
        ({"deep": 3, "trials": 0}, "trials: expected at least 1, got 0"),
        ({"speedup": 100.0}, "speedup=100.0: expected above 1 and up to"),
        pytest.param(
            {"psnr": 99.9},
            r"psnr=99.9: 4 deep steps give \d+\.\d dB, and no more were searched for",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_an_aim_that_makes_no_sense_is_refused(model: models.Model, aims: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(model, sampler(model), **{"samples": 2, "trials": 1, "checks": 1, "width": 1, **aims}, progress=False)


def rescaled(model: models.Model) -> Callable[[int], Tensor]:
    """A sampler that goes by a result's size, as rescaled guidance does."""

    def run(seed: int) -> Tensor:
        latents = torch.randn((1, 6, 4), generator=torch.Generator().manual_seed(seed))
        for step in range(STEPS):
            velocity = model(latents, torch.tensor([1 - step / STEPS]), latents[:, :3])
            latents = latents - 0.1 * velocity / velocity.std()
        return latents

    return run


def unseeded(model: models.Model) -> Callable[[int], Tensor]:
    run = sampler(model)
    return lambda seed: run(seed) + torch.rand(())


def looking_ahead(model: models.Model) -> Callable[[int], Tensor]:
    """Heun's method: its second call of a step has the timestep of the next one's first."""

    def run(seed: int) -> Tensor:
        latents, prompt = torch.randn((2, 1, 6, 4), generator=torch.Generator().manual_seed(seed))
        for step in range(STEPS):
            now, after = (torch.tensor([1 - one / STEPS]) for one in (step, step + 1))
            first = model(latents, now, prompt)
            second = model(latents - first / STEPS, after, prompt)
            latents = latents - (first + second) / (2 * STEPS)
        return latents

    return run


@torch.no_grad()
def test_what_cannot_be_rehearsed_is_refused_with_the_reason(model: models.Model) -> None:
    with pytest.raises(
        ValueError, match=r"step 0 of the sampler is no sum .* \(off by \d+\.\d%\), not with those of 3"
    ):
        rehearsed(model, rescaled(model))
    with pytest.raises(ValueError, match=r"two runs of one seed differ.* noise that the function's seed does not"):
        rehearsed(model, unseeded(model))
    with pytest.raises(ValueError, match="calls with one timestep were given other latents"):
        rehearsed(model, looking_ahead(model))
    with pytest.raises(ValueError, match="nothing was recorded of the model: the function did not call it"):
        rehearse(model, lambda seed: torch.zeros(()), range(2), CUT)
    enable_cache(model, compile=False)
    with pytest.raises(ValueError, match="this model has a cache already: call disable_cache first"):
        tune(model, sampler(model), deep=3, progress=False)
    disable_cache(model)


def test_a_table_stands_on_its_own_schedule_and_number_of_steps_alone(model: models.Model) -> None:
    table = LearnedTable((0, 2), ((0.0,), (1.0,), (0.0,), (1.0,)))
    DiCacheConfig(schedule=Schedule.steps(0, 2), estimator=table)
    for schedule in (Schedule.steps(0, 1), None):
        with pytest.raises(ValueError, match=r"was fitted for schedule=Schedule\.steps\(0, 2\), got deep steps"):
            DiCacheConfig(schedule=schedule, estimator=table)
    enable_cache(model, DiCacheConfig(schedule=Schedule.steps(0, 2), estimator=table, num_steps=5), compile=False)
    with pytest.raises(Exception, match="was fitted for 4 steps, and this generation has 5"):
        sampler(model)(0)
    disable_cache(model)


def test_at_run_time_a_table_takes_the_place_of_one_with_as_many_numbers_alone(model: models.Model) -> None:
    def table(*deep: int, weights: int = 1) -> LearnedTable:
        return LearnedTable(deep, ((1.0,) * weights,) * STEPS)

    config = DiCacheConfig(schedule=Schedule.steps(0, 2), estimator=table(0, 2), num_steps=STEPS)
    enabled = enable_cache(model, config, compile=False)
    sampler(model)(0)
    enabled.configure(schedule=Schedule.steps(0, 5), estimator=table(0, 5))
    sampler(model)(1)
    (stream,) = summary(model).generations[-1].streams.values()
    assert [step.deep for step in stream] == [step in (0, 5) for step in range(STEPS)]
    with pytest.raises(TypeError, match="estimator: is part of the compiled graph: compile the model again"):
        enabled.configure(schedule=Schedule.steps(0, 2), estimator=table(0, 2, weights=2))
    with pytest.raises(TypeError, match="estimator: is part of the compiled graph"):
        enabled.configure(estimator=Reuse())
    disable_cache(model)


def test_results_of_many_kinds_are_compared() -> None:
    picture = torch.rand((3, 4, 4), generator=torch.Generator().manual_seed(0))
    assert psnr(values(picture), values(picture)) == 100
    noisy = psnr(values(picture + 0.1), values(picture))
    assert noisy == pytest.approx(20)
    assert psnr(values([(picture * 255).round().numpy()]), values([(picture * 255).round().numpy() - 1])) > 40
    with pytest.raises(TypeError, match="expected a tensor, an array or pictures from the function, got str"):
        values("picture")
    with pytest.raises(ValueError, match=r"two runs of one seed differ in shape"):
        psnr(torch.zeros(2), torch.zeros(3))
