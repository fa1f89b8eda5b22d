from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig
from dicache_compile.calls.settings import forced_steps
from dicache_compile.estimators import DCTA, Reuse
from dicache_compile.options import split_options


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("threshold", -0.1, "threshold: expected a number from 0 to inf, got -0.1"),
        ("threshold", math.nan, "threshold: expected a number"),
        ("threshold", "0.1", "threshold: expected a number, got '0.1'"),
        ("threshold", True, "threshold: expected a number, got True"),
        ("probe_depth", -1, "probe_depth: expected at least 0"),
        ("probe_depth", 1.0, "probe_depth: expected a whole number"),
        ("gamma_range", (1.5, 1.0), "gamma_range: expected low <= high"),
        ("gamma_range", 1.5, "gamma_range: expected two numbers"),
        ("gamma_range", (1.0, math.nan), "gamma_range: expected a number"),
        ("error", "delta_y", "error: expected one of 'probe', 'probe_minus_input', 'estimate', got 'delta_y'"),
        ("comparison", "<<", "comparison: expected one of"),
        ("warmup_steps", -1, "warmup_steps: expected at least 0"),
        ("warmup_ratio", 1.5, "warmup_ratio: expected a number from 0 to 1"),
        ("warmup_inclusive", 1, "warmup_inclusive: expected True or False"),
        ("warmup_inclusive", True, "warmup_ratio is None"),
        ("final_steps", None, "final_steps: expected a whole number"),
        ("deep_steps", 5, "deep_steps: expected a tuple of steps, got 5"),
        ("deep_steps", (1, 2.5), "deep_steps: expected a whole number, got 2.5"),
        ("deep_steps", (-1,), "deep_steps: expected at least 0"),
        ("deep_steps", (5, 3), "deep_steps: expected each step once and in order, got (5, 3)"),
        ("deep_steps", (5, 5), "deep_steps: expected each step once and in order"),
        ("max_consecutive_skips", -1, "max_consecutive_skips: expected at least 0"),
        ("num_steps", 0, "num_steps: expected at least 1"),
        ("num_steps", 2, "warmup_steps=3 is more than num_steps=2"),
        ("threshold", 10**400, "threshold: expected a number that a float can hold, or inf, got one of 1329 bits"),
        ("gamma_range", (1, 10**400), "gamma_range: expected a number that a float can hold"),
        ("num_steps", 10**30, "num_steps: expected at most 4611686018427387904, got a number of 100 bits"),
        ("warmup_steps", 10**4000, "warmup_steps: expected at most"),
        ("max_consecutive_skips", 2**63, "max_consecutive_skips: expected at most"),
        ("probe_depth", -(10**4000), "probe_depth: expected at least 0, got a number of 13288 bits"),
        ("deep_steps", (3, 4096), "deep_steps: expected steps below 4096, got 4096"),
        ("deep_steps", (3, 10**30), "deep_steps: expected at most"),
        ("streams", 2, "streams: expected one of 'auto', 1, got 2"),
        ("streams", True, "streams: expected one of"),
        ("state_dtype", torch.int32, "state_dtype: expected one of"),
        ("state_dtype", "float16", "state_dtype: expected one of"),
        ("timestep_input", 3, "timestep_input: expected the name"),
        ("trunk", 3, "trunk: expected a module path"),
        ("trunk", ("blocks", ""), "trunk: expected a module path"),
        ("lowering", "aot", "lowering: expected one of"),
        ("engine", "cudagraphs", "engine: expected one of"),
        ("strict", 1, "strict: expected True or False"),
        ("joint", 1, "joint: expected True or False, got 1"),
        ("order", 3, "order: expected one of 1, 2, got 3"),
        ("feedback", 1.5, "feedback: expected a number from 0 to 1, got 1.5"),
        ("feedback", True, "feedback: expected a number, got True"),
        ("gate", "probe", "gate: expected an object with the methods of rules.Gate"),
        ("estimator", int, "estimator: expected an object with the methods of rules.Estimator"),
    ],
)
def test_a_bad_value_is_an_error_at_construction_that_names_the_field(field: str, value: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        DiCacheConfig(**{field: value})
    assert error in str(caught.value)


def test_an_error_of_the_estimate_needs_an_estimator_that_can_be_checked_and_a_probe() -> None:
    with pytest.raises(ValueError, match=r"error='estimate' needs an estimator with the methods of rules\.Checked"):
        DiCacheConfig(error="estimate", estimator=Reuse())
    with pytest.raises(ValueError, match="probe_depth=0 leaves no probe to try the estimator on"):
        DiCacheConfig(error="estimate", probe_depth=0)


def test_feedback_goes_with_the_line_through_two_anchors() -> None:
    with pytest.raises(ValueError, match="order=2 needs feedback=0"):
        DiCacheConfig(order=2, feedback=0.5)


def test_an_estimator_along_the_input_is_not_tried_on_the_probe() -> None:
    with pytest.raises(ValueError, match="error='estimate' tries the estimator on the probe, and DCTA"):
        DiCacheConfig(estimator=DCTA((1, 2), along="input"), error="estimate")
    with pytest.raises(ValueError, match="along: expected 'probe' or 'input', got 'inputs'"):
        DCTA((1, 2), along="inputs")  # type: ignore[arg-type]


def test_a_deep_step_after_the_last_is_an_error() -> None:
    assert DiCacheConfig(deep_steps=(9,), num_steps=10).deep_steps == (9,)
    with pytest.raises(ValueError, match="deep_steps: the last of num_steps=10 is step 9, got 10"):
        DiCacheConfig(deep_steps=(3, 10), num_steps=10)


def test_a_config_is_frozen_and_its_options_make_it_again() -> None:
    lists: Any = {"trunk": ["a", "b"], "gamma_range": [1, 2], "deep_steps": [4, 7]}
    config = DiCacheConfig(threshold=0.2, **lists)
    with pytest.raises(AttributeError):
        config.threshold = 1  # type: ignore[misc]
    assert DiCacheConfig(**config.options()) == config
    assert hash(config) == hash(DiCacheConfig(**config.options()))


def test_the_default_needs_no_number_of_steps_and_is_careful() -> None:
    (rule,) = DiCacheConfig().all_rules()
    assert not rule.needs_num_steps()
    assert forced_steps(rule, None) == (3, None)
    assert rule.max_consecutive_skips == 2
    assert rule.error == "estimate"


@pytest.mark.parametrize(
    ("preset", "steps", "ratio", "forced"),
    # Published: FLUX int(.2 * 30) + 1 and the last, Hunyuan int(.2 * 50), WAN int(.2 * 100) calls of two streams.
    [
        ("flux", 30, 0.2, [*range(7), 29]),
        ("hunyuan", 50, 0.2, [*range(10)]),
        ("wan", 50, 0.2, [*range(10)]),
        ("flux", 23, 0.13, [*range(3), 22]),
        ("flux", 20, 0.0, [0, 19]),
        ("hunyuan", 7, 0.2, [0]),
    ],
)
def test_presets_force_the_published_steps(preset: Any, steps: int, ratio: float, forced: list[int]) -> None:
    warmup, last = forced_steps(DiCacheConfig.preset(preset, warmup_ratio=ratio), steps)
    assert [i for i in range(steps) if i < warmup or (last is not None and i >= last)] == forced


def test_presets_hold_the_published_values_and_take_overrides() -> None:
    assert DiCacheConfig.preset("flux").threshold == 0.4
    assert DiCacheConfig.preset("hunyuan").comparison == "<="
    assert DiCacheConfig.preset("wan").gamma_range == (1.0, 2.0)
    assert DiCacheConfig.preset("wan", threshold=0.2).threshold == 0.2
    with pytest.raises(ValueError, match="unknown preset 'sd3': expected one of 'abcache', "):
        DiCacheConfig.preset("sd3")
    with pytest.raises(TypeError, match="treshold"):
        DiCacheConfig.preset("flux", treshold=0.2)


def test_options_are_sorted_into_ours_and_inductors() -> None:
    config, settings = split_options({"threshold": 0.2, "max_autotune": True}, "reduce-overhead")
    assert config == DiCacheConfig(threshold=0.2)
    assert settings == {"triton.cudagraphs": True, "max_autotune": True}


@pytest.mark.parametrize(
    ("key", "nearest"), [("treshold", "threshold"), ("max_autotun", "max_autotune"), ("warmup", "warmup_")]
)
def test_an_unknown_option_is_an_error_that_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown option '{key}'; the nearest is '{nearest}"):
        split_options({key: 1}, None)


def test_an_unknown_mode_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown mode 'fast': expected one of .*'reduce-overhead'"):
        split_options(None, "fast")
