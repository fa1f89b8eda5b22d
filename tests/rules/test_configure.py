"""What a config's numbers are at run time: told by the host, changed without compiling, and named by the reports."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, configure, dicache_backend, explain, reset, stream, summary
from dicache_compile.calls.settings import forced_steps
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.published import published
from tests.models import SingleStream
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
BASE: dict[str, Any] = {"threshold": 0.0, "warmup_steps": 1, "max_consecutive_skips": None}
# Each with every field that it leaves as it was before.
CHANGES: list[dict[str, Any]] = [
    {"threshold": 0.3, "gamma_range": (0.5, 3.0)},
    {"threshold": math.inf, "deep_steps": (2, 3, 6)},
    {"deep_steps": (), "max_consecutive_skips": 1},
    {"max_consecutive_skips": None, "num_steps": STEPS, "warmup_ratio": 0.4, "final_steps": 2},
]


def decisions(model: models.Model, name: str = "0") -> list[bool]:
    return [step.deep for step in summary(model).generations[-1].streams[name]]


def oracle_of(model: models.Model, config: DiCacheConfig) -> PlainDiCache:
    """The plain rule under the same numbers; forced last steps are in its list of deep ones."""
    warmup, last = forced_steps(config, config.num_steps)
    forced = {*config.deep_steps, *range(STEPS if last is None else last, STEPS)}
    limit = config.max_consecutive_skips
    return PlainDiCache(
        model,
        config.threshold,
        warmup=warmup,
        gamma_range=config.gamma_range,
        deep_steps=tuple(sorted(forced)),
        max_skips=math.inf if limit is None else limit,
    )


@pytest.mark.parametrize("engine", ["calls", "cond", "conditional"])
def test_a_changed_config_compiles_nothing_and_runs_as_the_oracle_and_as_one_compiled_with_it(engine: str) -> None:
    model = models.make(SingleStream)
    call = compiled(model, apart=True, **BASE, engine=engine)
    generate(call, model)
    assert decisions(model) == [True] * STEPS
    seen = set()
    for change in CHANGES:
        config = configure(call, **change)
        assert summary(call).config == explain(call).config == config
        oracle = oracle_of(model, config)
        theirs = generate(oracle, model)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_near(generate(call, model), theirs)
        assert decisions(model) == oracle.deep
        seen.add(tuple(oracle.deep))
        assert summary(call).generations[-1].config == config
    assert len(seen) == len(CHANGES)
    fresh = models.make(SingleStream)
    last = generate(compiled(fresh, **{**BASE, **{k: v for c in CHANGES for k, v in c.items()}}, engine=engine), fresh)
    assert all(torch.equal(a, b) for a, b in zip(generate(call, model), last, strict=True))


@pytest.mark.parametrize("engine", ["calls", "conditional"])
def test_a_running_generation_is_not_changed(engine: str) -> None:
    model = models.make(SingleStream)
    call = compiled(model, **BASE, engine=engine)
    with torch.no_grad():
        for step in range(STEPS):
            if step == STEPS // 2:
                configure(call, threshold=math.inf)
            call(*models.inputs(model, step, STEPS))
    assert decisions(model) == [True] * STEPS
    generate(call, model)
    assert decisions(model) == [True] + [False] * (STEPS - 1)
    before, after = summary(call).generations
    assert (before.config.threshold, after.config.threshold) == (0.0, math.inf)
    lines = [f"{number:>10}  config  {one.config.brief()}" for number, one in enumerate((before, after))]
    assert str(summary(call)).splitlines()[-2:] == lines
    assert lines[0].startswith("         0  config  threshold=0.0, gamma_range=(1.0, 1.5), order=1, error='probe', ")


def test_a_model_is_configured_before_its_first_call_and_after_a_reset() -> None:
    model = models.make(SingleStream)
    call = compiled(model, **BASE)
    configure(call, threshold=math.inf)
    assert explain(call, *models.inputs(model, 0, STEPS)).config == configure(call)
    generate(call, model)
    assert sum(decisions(model)) == 1
    reset(call)
    torch._dynamo.reset()
    generate(call, model)
    assert sum(decisions(model)) == 1


def test_models_of_one_form_share_a_graph_under_different_settings() -> None:
    pair = [models.make(SingleStream, seed=seed) for seed in (0, 1)]
    calls = [compiled(model, apart=True, **BASE) for model in pair]
    generate(calls[0], pair[0])
    configure(calls[1], threshold=math.inf)
    with torch._dynamo.config.patch(error_on_recompile=True):
        generate(calls[1], pair[1])
        generate(calls[0], pair[0])
    assert [sum(decisions(model)) for model in pair] == [STEPS, 1]


def test_every_stream_takes_its_change_when_its_own_generation_starts() -> None:
    model = models.make(SingleStream)
    call = compiled(model, **BASE)  # not joint: the streams would decide alike
    with torch.no_grad():
        for step in range(STEPS):
            if step == 3:
                configure(call, threshold=math.inf)
            with stream("early"):
                call(*models.inputs(model, step, STEPS))
            if step >= 4:
                with stream("late"):
                    call(*models.inputs(model, step, STEPS))
    assert decisions(model, "early") == [True] * STEPS
    assert decisions(model, "late") == [True] + [False] * (STEPS - 5)


@pytest.mark.parametrize(
    ("fields", "kind", "error"),
    [
        ({"threshold": -1}, ValueError, "threshold: expected a number from 0 to inf, got -1"),
        ({"deep_steps": (5, 3)}, ValueError, "deep_steps: expected each step once and in order"),
        ({"num_steps": 1, "warmup_steps": 2}, ValueError, "warmup_steps=2 is more than num_steps=1"),
        ({"order": 2}, TypeError, "order: is part of the compiled graph: compile the model again"),
        ({"treshold": 2}, TypeError, "treshold: is no field of the config"),
    ],
)
def test_what_cannot_be_changed_is_an_error_and_changes_nothing(fields: Any, kind: Any, error: str) -> None:
    model = models.make(SingleStream)
    call = compiled(model, **BASE)
    before = configure(call)
    with pytest.raises(kind, match=error):
        configure(call, max_consecutive_skips=2, **fields)
    assert configure(call) == before


def test_what_is_not_compiled_cannot_be_configured() -> None:
    with pytest.raises(ValueError, match="this model is not compiled with dicache_backend"):
        configure(models.make(SingleStream), threshold=0.1)


def test_a_field_that_nothing_reads_is_an_error() -> None:
    from dicache_compile.gates import ProbeError

    model = models.make(SingleStream)
    with pytest.raises(ValueError, match="threshold: nothing reads it, because the config has gate=ProbeError"):
        configure(compiled(model, gate=ProbeError(0.2)), threshold=0.1)


def test_the_options_are_found_however_the_model_is_compiled() -> None:
    options = published(**BASE, lowering="eager").options()
    in_place, by_name, bound = (models.make(SingleStream) for _ in range(3))
    in_place.compile(backend=dicache_backend, options=options)
    calls = [
        in_place,
        torch.compile(by_name, backend="dicache", options=options),
        torch.compile(bound, backend=partial(dicache_backend, options=options)),
    ]
    assert [configure(call) for call in calls] == [published(**BASE, lowering="eager")] * 3


def test_compiling_again_for_another_number_keeps_both_apart_and_tells_once_of_configure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger("dicache_compile"), "warning", lambda text, *of: told.append(text % of))
    model = models.make(SingleStream)
    first, second, third = (compiled(model, **{**BASE, "threshold": limit}) for limit in (0.0, math.inf, 0.1))
    with torch.no_grad():
        for step in range(STEPS):
            first(*models.inputs(model, step, STEPS))
            second(*models.inputs(model, step, STEPS))
        generate(third, model)
    assert [step.deep for step in summary(first).generations[-1].streams["0"]] == [True] * STEPS
    assert [step.deep for step in summary(second).generations[-1].streams["0"]] == [True] + [False] * (STEPS - 1)
    assert len(summary(first).generations) == len(summary(second).generations) == 1
    assert len(told) == 1
    assert "threshold=0.0" in told[0]
    assert "threshold=inf" in told[0]


def test_a_config_that_dynamo_did_not_compile_shows_no_other_configs_decisions() -> None:
    torch._dynamo.reset()  # what is kept for other tests counts for the limit
    model = models.make(SingleStream)
    with torch._dynamo.config.patch(recompile_limit=2):
        calls = [
            torch.compile(
                model, backend=dicache_backend, options=DiCacheConfig(threshold=limit, lowering="eager").options()
            )
            for limit in (0.1, 0.2, 0.3)
        ]
        for call in calls:
            generate(call, model)
    assert summary(calls[1]).config == DiCacheConfig(threshold=0.2, lowering="eager")
    assert summary(calls[1]).generations
    told = summary(calls[2])
    assert not told.generations
    assert told.config == DiCacheConfig(threshold=0.3, lowering="eager")
    for text in (str(told), str(explain(calls[2]))):
        assert "threshold=0.3, lowering='eager') has not run" in text
        assert "configure(), which needs no compiling" in text
