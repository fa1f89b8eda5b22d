"""Several rules in one step, each for sites of its own: held to plain PyTorch on every engine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, SiteRule, configure, explain, summary
from dicache_compile.estimators import Reuse
from dicache_compile.gates import ProbeError as Probe
from dicache_compile.rules import Seen
from tests import models
from tests.contract.test_contract import ENGINES, STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.helpers.published import published_rule
from tests.oracles.site_oracle import PlainSite, PlainSites

pytestmark = pytest.mark.shares_traces

KINDS = {models.SingleStream: ("x",), models.TwoStream: ("x", "text")}


def asked(site: PlainSite) -> SiteRule:
    """The rule of a plain site."""
    if site.schedule is not None:
        return published_rule(sites=(site.first, site.last), schedule=Schedule.steps(*site.schedule), estimator=Reuse())
    rule: dict[str, Any] = {"warmup_steps": site.warmup, "max_consecutive_skips": site.max_skips}
    gate = {"gate": AfterTheFirst(site.threshold)} if site.follows else {"threshold": site.threshold}
    return published_rule(sites=(site.first, site.last), probe_depth=site.probe_depth, **rule, **gate)


@dataclass(frozen=True)
class AfterTheFirst(Probe):
    """Reuses wherever the rule before it did."""

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        within, compared = super().judge(seen)
        return within | seen.before, compared


def sequence(names: tuple[str, ...]) -> list[PlainSite]:
    return [
        PlainSite(0, 4, 0.5, warmup=2, max_skips=2, names=names),
        PlainSite(4, 8, 0.9, warmup=2, max_skips=None, names=names),
    ]


def nested(names: tuple[str, ...]) -> list[PlainSite]:
    inner = PlainSite(4, 7, math.inf, warmup=1, max_skips=1, names=names)
    return [PlainSite(1, 8, 0.4, warmup=2, max_skips=1, names=names, inner=[inner])]


def stages(names: tuple[str, ...]) -> list[PlainSite]:
    """H2-Cache's: where the first stage is reused the second one is, though its first block still runs."""
    return [
        PlainSite(0, 4, 0.4, warmup=2, max_skips=1, names=names),
        PlainSite(4, 8, 0.2, warmup=2, max_skips=None, names=names, follows=True),
    ]


def mixed(names: tuple[str, ...]) -> list[PlainSite]:
    """A schedule without a probe in front of a gate, and one inside of the gate's range."""
    inner = PlainSite(4, 7, probe_depth=0, schedule=(0, 1, 2, 4, 6, 8), names=names)
    return [
        PlainSite(0, 2, probe_depth=0, schedule=(0, 1, 4, 7), names=names),
        PlainSite(2, 8, 0.5, warmup=2, max_skips=1, names=names, inner=[inner]),
    ]


FORMS = {"sequence": sequence, "nested": nested, "stages": stages, "mixed": mixed}


@cells("form, kind, engine", list(FORMS), list(KINDS), ENGINES)
def test_each_rule_decides_for_its_sites_as_the_oracle(form: str, kind: type[models.Model], engine: str) -> None:
    model = models.make(kind, depth=8)
    oracle = PlainSites(model, FORMS[form](KINDS[kind]))
    theirs = generate(oracle, model)
    call = compiled(model, rules=[asked(site) for site in oracle.all()], engine=engine)
    ours = generate(call, model)
    assert_near(ours, theirs)
    steps = summary(model).generations[-1].streams["0"]
    decided = [[None if one is None else one.deep for one in step.decisions] for step in steps]
    assert decided == [list(step) for step in zip(*(site.decisions for site in oracle.all()), strict=True)]
    # Every rule reused and ran, and not always together.
    assert all({True, False} <= {step[rule] for step in decided} for rule in range(len(oracle.all())))
    assert any(len(set(step)) > 1 for step in decided)
    plain = generate(model, model)
    whole = [step for step, found in enumerate(decided) if all(found)]
    assert len(whole) > 1
    assert all(torch.equal(ours[step], plain[step]) for step in whole)


@pytest.mark.parametrize("form", list(FORMS))
def test_rules_may_stand_in_another_order_than_they_run(form: str) -> None:
    model = models.make(models.SingleStream, depth=8)
    oracle = PlainSites(model, FORMS[form](("x",)))
    theirs = generate(oracle, model)
    call = compiled(model, rules=[asked(site) for site in reversed(oracle.all())])
    assert_near(generate(call, model), theirs)
    steps = summary(model).generations[-1].streams["0"]
    for rule, site in enumerate(reversed(oracle.all())):
        ran = [one is not None and one.deep for one in (step.decisions[rule] for step in steps)]
        assert ran == [decided is True for decided in site.decisions]


@pytest.mark.parametrize("form", list(FORMS))
def test_nothing_reused_is_the_model_to_the_bit(form: str) -> None:
    model = models.make(models.Mixed, depth=8)
    rules = [
        published_rule(sites=(one.first, one.last), threshold=0) for one in PlainSites(model, FORMS[form](())).all()
    ]
    ours = generate(compiled(model, rules=rules), model)
    assert all(torch.equal(a, b) for a, b in zip(ours, generate(model, model), strict=True))


def test_explain_and_summary_have_a_line_for_each_rule() -> None:
    model = models.make(models.SingleStream, depth=8)
    rules = [
        published_rule(sites=(0, 3), schedule=Schedule.every(2), estimator=Reuse()),
        published_rule(sites=(3, 7), threshold=math.inf, warmup_steps=2),
    ]
    call = compiled(model, rules=rules)
    generate(call, model)
    found = explain(call)
    assert str(found).splitlines()[1:5] == [
        "  trunk      blocks (8 blocks)",
        "  rule 1     probe none; deep blocks.0 ... blocks.2 (3)",
        "  rule 2     probe blocks.3; deep blocks.4 ... blocks.6 (3)",
        "  beside     blocks.7, on every step",
    ]
    assert [rule.deep for rule in found.rules] == [
        ("blocks.0", "blocks.1", "blocks.2"),
        ("blocks.4", "blocks.5", "blocks.6"),
    ]
    assert 0 < found.skippable < 1
    first, second, config = str(summary(call)).splitlines()[1:]
    assert first.split() == ["0", "0", "10", "5", "50%", "d.d.d.d.d."]
    assert second.split() == ["0", "rule", "2", "10", "4", "40%", "dd...D...D"]
    assert "rules=(SiteRule(sites=(0, 3), schedule=Schedule.every(2, after=1), estimator=Reuse())" in config


def test_rules_change_without_compiling_and_only_to_rules_of_the_same_form() -> None:
    model = models.make(models.SingleStream, depth=8)
    rules = [
        published_rule(sites=(0, 4), threshold=0),
        published_rule(sites=(4, 8), threshold=math.inf, warmup_steps=2),
    ]
    call = compiled(model, rules=rules)
    generate(call, model)
    configure(call, rules=[published_rule(sites=(0, 4), threshold=math.inf), rules[1]])
    with torch._dynamo.config.patch(error_on_recompile=True):
        generate(call, model)
    counts = [
        [sum(step.decisions[rule].deep for step in found.streams["0"]) for rule in (0, 1)]  # type: ignore[union-attr]
        for found in summary(call).generations
    ]
    assert counts == [[10, 4], [4, 4]]
    with pytest.raises(ValueError, match="rules: these need another graph"):
        configure(call, rules=[SiteRule(sites=(0, 5)), rules[1]])
    with pytest.raises(ValueError, match="threshold: nothing reads it, because the config has rules"):
        configure(call, threshold=0.1)


@pytest.mark.parametrize(
    ("sites", "overlap"),
    [
        (((0, 4), (3, 8)), "(0, 4) and (3, 8)"),
        (((0, 4), (0, 4)), "(0, 4) and (0, 4)"),
        ((((0, 3), (5, 8)), (2, 6)), ""),
    ],
)
def test_sites_of_two_rules_that_overlap_are_refused(sites: Any, overlap: str) -> None:
    model = models.make(models.SingleStream, depth=8)
    call = compiled(model, rules=[SiteRule(sites=one) for one in sites], strict=False)
    reason = explain(call, *models.inputs(model, 0, STEPS)).reason or ""
    assert re.search(rf"sites: .*{re.escape(overlap)}.* of two rules overlap; give them one after the other", reason)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"rules": SiteRule()}, "rules: expected a tuple of SiteRule, got SiteRule()"),
        ({"rules": [DiCacheConfig()]}, "rules: expected a tuple of SiteRule, got DiCacheConfig("),
        ({"rules": [{"threshold": 1}]}, "rules: expected a tuple of SiteRule, got {"),
        ({"rules": [SiteRule()], "threshold": 0.2}, "threshold: nothing reads it, because the config has rules"),
        ({"rules": [SiteRule(final_steps=9)], "num_steps": 8}, "final_steps=9 is more than num_steps=8"),
        (
            {"rules": [SiteRule(deep_steps=(8,))], "num_steps": 8},
            "deep_steps: the last of num_steps=8 is step 7, got 8",
        ),
        ({"schedule": Schedule.steps(0, 9), "num_steps": 9}, "schedule: the last of num_steps=9 is step 8, got 9"),
    ],
)
def test_rules_that_make_no_sense_are_refused(config: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        DiCacheConfig(**config)
