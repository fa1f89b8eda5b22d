"""`quality` gives the values of the fields that were not given, and of those alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, Schedule, SiteRule, configure, explain, generation, summary
from dicache_compile.estimators import DCTA, FeedbackDCTA, Reuse, SecondOrderDCTA
from dicache_compile.gates import EstimateError, ProbeError
from tests import models
from tests.contract.test_contract import generate
from tests.helpers import shared

pytestmark = pytest.mark.shares_traces
FIELDS = ("error", "threshold", "order", "gamma_range", "max_consecutive_skips")


def settled(**fields: Any) -> tuple[Any, ...]:
    (rule,) = DiCacheConfig(**fields).all_rules()
    return tuple(getattr(rule, name) for name in FIELDS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("estimate", 0.1, 2, (1, 2), 2)),
        ({"quality": "high"}, ("estimate", 0.03, 2, (1, 2), 2)),
        ({"quality": "fast"}, ("estimate", 0.2, 2, (1, 2), 3)),
        ({"quality": "fast", "threshold": 0.3}, ("estimate", 0.3, 2, (1, 2), 3)),
        ({"order": 1}, ("estimate", 0.1, 1, (1, 2), 2)),
        ({"feedback": 0.5}, ("estimate", 0.1, 1, (1, 2), 2)),
        ({"error": "probe"}, ("probe", 0.1, 1, (1, 1.5), 2)),
        ({"error": "probe_minus_input", "quality": "fast"}, ("probe_minus_input", pytest.approx(0.04), 1, (1, 1.5), 3)),
        ({"error": "probe", "order": 2, "gamma_range": (1, 4)}, ("probe", 0.1, 2, (1, 4), 2)),
        ({"max_consecutive_skips": None}, ("estimate", 0.1, 2, (1, 2), None)),
        # Where there is no probe, or nothing that could be tried on it, how far h has moved decides.
        ({"probe_depth": 0}, ("probe", 0.1, 1, (1, 1.5), 2)),
        ({"sites": ((0, 2), (3, 5))}, ("probe", 0.1, 1, (1, 1.5), 2)),
        ({"estimator": Reuse()}, ("probe", 0.1, None, None, 2)),
        ({"estimator": DCTA((1, 2), along="input")}, ("probe", 0.1, None, None, 2)),
        ({"estimator": DCTA((1, 2))}, ("estimate", 0.1, None, None, 2)),
        ({"gate": ProbeError(0.2)}, (None, None, 1, (1, 1.5), 2)),
        ({"schedule": Schedule.every(3)}, (None, None, 1, (1, 1.5), "auto")),
    ],
)
def test_what_is_not_given_is_as_the_quality_says_and_fits_what_is(fields: Any, expected: Any) -> None:
    assert settled(**fields) == expected


def test_the_rules_are_made_of_it() -> None:
    (rule,) = DiCacheConfig().rules_in_force()
    assert (rule.gate, rule.estimator, rule.joint) == (EstimateError(0.1, "<"), SecondOrderDCTA((1.0, 2.0)), True)
    (rule,) = DiCacheConfig(feedback=1, joint=False).rules_in_force()
    assert (rule.estimator, rule.joint) == (FeedbackDCTA((1.0, 2.0), "probe", 1), False)
    (rule,) = DiCacheConfig(schedule=Schedule.every(3)).rules_in_force()
    assert (rule.gate, rule.joint) == (None, False)


def test_a_rule_among_several_has_a_quality_of_its_own() -> None:
    rules = [SiteRule(sites=(0, 3), quality="fast"), SiteRule(sites=(3, 6))]
    assert [rule.threshold for rule in DiCacheConfig(rules=rules).all_rules()] == [0.2, 0.1]


def test_a_config_keeps_what_was_given_apart_from_what_follows() -> None:
    config = DiCacheConfig(quality="fast", threshold=0.3)
    assert config.brief() == "quality='fast', threshold=0.3"
    assert dataclasses.replace(config, estimator=Reuse(), threshold=None).all_rules()[0].threshold == 0.2
    assert DiCacheConfig(**config.options()) == config


def test_a_bad_quality_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="quality: expected one of 'high', 'balanced', 'fast', got 'best'"):
        DiCacheConfig(quality="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold: nothing reads it, because the config has gate="):
        DiCacheConfig(gate=ProbeError(0.2), threshold=0.1)


def test_the_quality_is_changed_between_generations_and_for_one_run_without_compiling() -> None:
    model = models.make(models.SingleStream)
    shared.compile_in_place(model, {"lowering": "eager", "quality": "high", "strict": True})
    with torch._dynamo.config.patch(error_on_recompile=True):
        generate(model, model)
        configure(model, quality="fast")
        generate(model, model)
        with generation(quality="balanced"):
            generate(model, model)
        generate(model, model)
    assert [one.config.all_rules()[0].threshold for one in summary(model).generations] == [0.03, 0.2, 0.1, 0.2]
    assert "quality='fast'" in str(explain(model))


def test_an_infinite_threshold_needs_no_other_graph() -> None:
    assert DiCacheConfig().adjusted(threshold=math.inf).all_rules()[0].error == "estimate"
