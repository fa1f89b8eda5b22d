"""Presets that are named after published methods: what they make of a config, and that it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, enable_cache, summary
from dicache_compile.estimators import (
    BandSplit,
    FoCa,
    Hermite,
    HyCa,
    ProjectedDCTA,
    Reuse,
    Spectrum,
    StepAffine,
    Taylor,
    Tokens,
)
from dicache_compile.gates import (
    Motion,
    OutputRate,
    Planned,
    PolynomialChange,
    ProbeError,
    ResidualChange,
    SalientChange,
    SpectralChange,
)
from dicache_compile.planning import growing
from dicache_compile.presets import METHODS
from dicache_compile.published import published
from tests import models
from tests.contract.test_contract import STEPS, generate

AFFINE = {"deep_steps": (0, 1, 4, 8), "scale": (0.99,) * 16, "shift": (0.01,) * 16}
# What a method needs besides its defaults, on a model of four blocks with 16 channels and steps of ten.
NEEDED: dict[str, dict[str, Any]] = {
    "flux": {"num_steps": STEPS},
    "hunyuan": {"num_steps": STEPS},
    "wan": {"num_steps": STEPS},
    "hyca": {"of_channel": (0, 1) * 8},
    "spectrum": {"num_steps": STEPS},
    "abcache": {"num_steps": STEPS},
    "toca": {"num_steps": STEPS},
    "teacache": {"num_steps": STEPS},
    "easycache": {"num_steps": STEPS, "first": 3},
    "seacache": {"num_steps": STEPS, "grid": (1, 2, 3), "sigma": 1.0},
    "adacache": {"num_steps": STEPS},
    "dbcache": {"first_blocks": 2, "warmup_steps": 2},
    "magcache": {"num_steps": STEPS},
    "pab": {"num_steps": STEPS},
    "fastercache": {"num_steps": STEPS, "grid": (2, 3)},
    "meancache": {"deep_steps": (0, 1, 4, 8), "sigmas": tuple(1 - step / STEPS for step in range(STEPS + 1))},
    "smoothcache": {"errors": {"attention": [[0.05] * (STEPS - 1)], "mlp": [[0.05] * (STEPS - 1)]}},
    "profilingdit": {"ranges": ((0, 2), (2, 4)), "deep_steps": (0, 3, 6)},
    "ertacache": AFFINE,
    "cachequant": AFFINE,
    "dpcache": {"deep_steps": (0, 1, 4, 8)},
    "learning-to-cache": {"routers": [[(1, step % 2 == 0)] * 4 for step in range(STEPS)]},
    "h2cache": {"double": 2, "single": 2, "pools": (2, 3)},
    "mixcache": {"blocks": (2, 4), "warmup_steps": 2},
}
# Their thresholds are of other models; with these a tiny one reuses some steps.
LOOSE: dict[str, dict[str, Any]] = {
    "fbcache": {"threshold": 0.3},
    "dbcache": {"threshold": 0.3},
    "easycache": {"threshold": 0.5},
    "worldcache": {"threshold": 0.5},
    "flowcache": {"threshold": 0.5},
    "mixcache": {"threshold": 0.3},
    "h2cache": {"first": 0.3, "second": 0.3},
    "hunyuan": {"threshold": 0.5},
    "wan": {"threshold": 0.5},
}


def made(name: str, **fields: Any) -> DiCacheConfig:
    return DiCacheConfig.preset(name, **{**NEEDED.get(name, {}), **LOOSE.get(name, {}), **fields})


# Whose sites or gates are cut in a way of their own; the others differ in their estimator, which is tried elsewhere.
OWN_CUT = ("teacache", "easycache", "h2cache", "smoothcache", "profilingdit", "learning-to-cache", "toca", "abcache")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OWN_CUT else [pytest.mark.exhaustive]) for name in METHODS]
)
def test_a_preset_runs_deep_on_some_steps_and_reuses_others(name: str) -> None:
    torch._dynamo.reset()
    model = models.make(models.Mixed)
    config = made(name, lowering="eager", strict=True)
    results = generate(torch.compile(model, backend=dicache_backend, options=config.options()), model)
    assert all(result.isfinite().all() for result in results)
    record = next(iter(summary(model).generations[-1].streams.values()))  # of "0", or of its first row
    assert record[0].deep
    assert {one.deep for step in record for one in step.decisions if one is not None} == {True, False}


def test_a_method_says_its_source_and_what_it_does() -> None:
    for one in METHODS.values():
        assert one.source
        assert one.fields.__doc__
        assert one.call.startswith(f"preset('{one.name}'")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("taylorseer", {"interval": 5, "order": 2}, (Schedule.every(5, after=3), Taylor(2, first=3))),
        ("hicache", {}, (Schedule.every(5, after=2), Hermite(2))),
        ("foca", {"interval": 4}, (Schedule.every(4, after=3), FoCa())),
        ("hyca", {"of_channel": (0, 1)}, (Schedule.every(7, after=3), HyCa(("taylor", "ab2"), (0, 1)))),
        ("freqca", {"grid": (64, 64)}, (Schedule.every(6, after=3), BandSplit(first=3, grid=(64, 64)))),
        ("spectrum", {"share": 0.7}, (growing(50), Spectrum(share=0.7))),
        ("ertacache", AFFINE, (Schedule.steps(0, 1, 4, 8), StepAffine((0.99,) * 16, (0.01,) * 16))),
    ],
)
def test_a_forecast_has_its_schedule_and_its_estimator(name: str, given: Any, expected: Any) -> None:
    config = DiCacheConfig.preset(name, **given)
    assert (config.schedule, config.estimator) == expected


def test_modules_are_forecast_apart_as_published() -> None:
    for name in ("taylorseer", "hicache", "foca"):
        assert DiCacheConfig.preset(name).sites == "trunk"
        assert DiCacheConfig.preset(name, where="modules").sites == ("attention", "cross_attention", "mlp")
    with pytest.raises(ValueError, match="where: expected 'trunk' or 'modules', got 'blocks'"):
        DiCacheConfig.preset("foca", where="blocks")


def test_a_gate_has_the_published_numbers() -> None:
    tea = published("teacache")["models"]["hunyuan-video"]
    config = DiCacheConfig.preset("teacache", model="hunyuan-video")
    assert config.gate == PolynomialChange(tuple(tea["coefficients"]), 0.1)
    assert (config.estimator, config.probe_depth, config.warmup_steps, config.final_steps) == (Reuse(), 0, 1, 1)
    assert DiCacheConfig.preset("teacache", threshold=0.6).gate.threshold == 0.6  # type: ignore[union-attr]
    assert DiCacheConfig.preset("fbcache", threshold=0.1).gate == ResidualChange(0.1, "<=")
    assert DiCacheConfig.preset("dbcache", last_blocks=2).sites == (0, -2)
    assert DiCacheConfig.preset("dbcache", order=1).estimator == Taylor(1, base="h")
    assert DiCacheConfig.preset("easycache").gate == OutputRate(0.05)
    assert DiCacheConfig.preset("seacache", grid=(21, 30, 52)).gate == SpectralChange(0.25, (21, 30, 52))
    assert DiCacheConfig.preset("worldcache").estimator == ProjectedDCTA((0.2, 1.8))
    assert DiCacheConfig.preset("worldcache").gate == SalientChange(0.08)
    flow = DiCacheConfig.preset("flowcache")
    assert (flow.gate, flow.rows, flow.probe_depth, flow.warmup_steps) == (ProbeError(0.01), "independent", 0, 5)
    assert DiCacheConfig.preset("bwcache").gate == Planned(((0.15, 5),), per_step=False)
    inf = float("inf")
    plan = ((0.08, 5), (0.16, 4), (0.24, 3), (0.32, 2), (0.4, 1), (inf, 0))
    assert DiCacheConfig.preset("adacache").gate == Planned(plan)
    tokens = DiCacheConfig.preset("toca", grid=(4, 6)).estimator
    assert tokens == Tokens(0.1, age_weight=0.25, period=3, grid=(4, 6))
    moving = DiCacheConfig.preset("adacache", blocks=3, monitored=1, frame_tokens=16)
    assert moving.gate == Planned(plan, of=1, residual=True, motion=Motion(16, steps=(4, 26)))
    assert moving.sites == ((0, 1), (1, 2), (2, 3))
    with pytest.raises(ValueError, match="monitored: expected the number of one of 12 blocks, from 0 on, got 13"):
        DiCacheConfig.preset("adacache", blocks=12)


def test_a_field_takes_the_place_of_the_methods() -> None:
    assert DiCacheConfig.preset("fbcache", warmup_steps=4).warmup_steps == 4
    assert DiCacheConfig.preset("taylorseer", estimator=Reuse()).estimator == Reuse()
    config = DiCacheConfig.preset("fbcache", schedule=Schedule.every(4))
    assert (config.gate, config.schedule) == (None, Schedule.every(4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: DiCacheConfig.preset("tealeaf"),
            ValueError,
            "unknown preset 'tealeaf': expected one of 'abcache', 'adacache', ",
        ),
        (lambda: DiCacheConfig.preset("teacache", model="sd3"), ValueError, "model='sd3': expected one of flux-dev, "),
        (lambda: DiCacheConfig.preset("teacache", model="wan2.1-t2v-14b"), ValueError, "planning.by_sum"),
        (lambda: DiCacheConfig.preset("hyca"), TypeError, r"preset\('hyca', of_channel=\.\.\., .*missing 1 required"),
        (lambda: DiCacheConfig.preset("fora", intervall=2), TypeError, "intervall"),
        (
            lambda: DiCacheConfig.preset("learning-to-cache", routers=[[(1, 1)] * 2] * 3),
            ValueError,
            "every part of every block runs on every step",
        ),
    ],
)
def test_what_no_preset_can_have_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_enable_cache_takes_a_methods_parameters_and_fields() -> None:
    model = models.make(models.Mixed)
    enabled = enable_cache(model, preset="taylorseer", interval=4, order=2, compile=False, num_steps=8)
    assert enabled.config.schedule == Schedule.every(4, after=3)
    assert enabled.config.estimator == Taylor(2, first=3)
    assert (enabled.config.num_steps, enabled.config.lowering) == (8, "eager")
