"""What `summary` gives to other programs: dicts, rows, CSV, a DataFrame; and the host's clock in it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, Schedule, SiteRule, stream, summary
from dicache_compile.estimators import Reuse
from dicache_compile.plain import plain
from dicache_compile.summary import COLUMNS, Generation, StepRecord, Summary
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.models import SingleStream

pytestmark = pytest.mark.shares_traces

RULES: dict[str, Any] = {
    "rules": (
        SiteRule(sites=(0, 2), schedule=Schedule.every(3), estimator=Reuse()),
        SiteRule(sites=(2, 4), threshold=math.inf),
    )
}


def ran(generations: int = 1, **config: Any) -> Summary:
    model = models.make(SingleStream)
    call = compiled(model, **(config or {"threshold": 10.0}))
    for _ in range(generations):
        generate(call, model)
    return summary(call)


def strictly(value: Any) -> Any:
    """After a round trip through JSON that knows no NaN."""
    return json.loads(json.dumps(value, allow_nan=False))


def test_a_dict_of_a_summary_goes_through_json_and_has_every_step() -> None:
    did = ran(generations=2)
    told = did.to_dict()
    assert strictly(told) == told
    assert [len(one["streams"]["0"]) for one in told["generations"]] == [STEPS, STEPS]
    assert told["config"]["threshold"] == 10.0
    steps = did.generations[-1].streams["0"]
    for step, record in zip(steps, told["generations"][-1]["streams"]["0"], strict=True):
        assert StepRecord(**{**record, "others": tuple(record["others"])}) == step


def test_a_summary_of_nothing_goes_through_json_too() -> None:
    assert Summary([], None, "not called").to_dict() == {"generations": [], "config": None, "reason": "not called"}
    assert Summary([], None, "not called").to_csv() == ",".join(COLUMNS) + "\n"


def test_what_json_has_no_form_for_becomes_a_text() -> None:
    config = DiCacheConfig(threshold=math.inf, state_dtype=torch.bfloat16, estimator=Reuse(), deep_steps=(1, 3))
    told = strictly(plain(config))
    assert (told["threshold"], told["state_dtype"], told["deep_steps"]) == ("inf", "bfloat16", [1, 3])
    assert told["estimator"] == "Reuse()"
    rules = strictly(plain(DiCacheConfig(**RULES)))["rules"]
    assert [rule["sites"] for rule in rules] == [[0, 2], [2, 4]]
    assert rules[0]["schedule"] == "Schedule.every(3, after=1)"
    assert strictly(plain({1: -math.inf, "nan": math.nan, "set": {1}})) == {"1": "-inf", "nan": "nan", "set": "{1}"}


def test_there_is_a_row_for_every_decision() -> None:
    did = ran(**RULES)
    rows = did.rows()
    assert all(tuple(row) == COLUMNS for row in rows)
    expected = [
        (step.index, number, one.deep)
        for step in did.generations[0].streams["0"]
        for number, one in enumerate(step.decisions, start=1)
        if one is not None
    ]
    assert [(row["index"], row["rule"], row["deep"]) for row in rows] == expected
    assert {row["rule"] for row in rows} == {1, 2}


def test_csv_is_read_back_as_it_was_also_with_odd_names() -> None:
    odd = 'a "quoted", <b>name</b>\nof two lines'
    model = models.make(SingleStream)
    call = compiled(model)
    with stream(odd):
        generate(call, model)
    did = summary(call)
    read = list(csv.DictReader(io.StringIO(did.to_csv(), newline="")))
    assert [row["stream"] for row in read] == [odd] * STEPS
    for text, row in zip(read, did.rows(), strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == text


def test_a_dataframe_has_the_rows_with_their_types() -> None:
    pandas = pytest.importorskip("pandas", reason="it is what makes the DataFrame")
    did = ran()
    frame = did.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(COLUMNS)
    assert frame.deep.tolist() == [step.deep for step in did.generations[0].streams["0"]]
    assert math.isnan(frame.error[0])
    assert frame.error.dtype == "float64"
    assert Summary([]).to_dataframe().empty


def test_without_pandas_a_dataframe_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ImportError, match=r"needs pandas, which is not installed: `pip install pandas`, or take to_csv"
    ):
        Summary([]).to_dataframe()


def test_the_hosts_clock_goes_on_from_step_to_step() -> None:
    (generation,) = ran().generations
    steps = generation.streams["0"]
    assert steps[0].began == 0
    for before, after in pairwise(steps):
        assert before.began is not None
        assert before.seconds is not None
        assert after.began is not None
        assert before.seconds > 0
        assert before.began + before.seconds < after.began


def test_the_clock_of_a_generation_is_one_for_all_of_its_streams() -> None:
    model = models.make(SingleStream)
    call = compiled(model)
    for step in range(STEPS):
        for name in ("cond", "uncond"):
            with stream(name), torch.no_grad():
                call(*models.inputs(model, step, STEPS))
    (generation,) = summary(call).generations
    began = [step.began for pair in zip(*generation.streams.values(), strict=True) for step in pair]
    assert began[0] == 0
    assert began == sorted(began)  # type: ignore[type-var]


def test_a_step_that_failed_has_no_time_and_times_make_no_difference() -> None:
    step = ran().generations[0].streams["0"][1]
    assert dataclasses.replace(step, seconds=None) == step
    assert Generation({"0": [step]}, DiCacheConfig()).streams["0"][0].seconds is not None
