"""What a stream's rows are told and tell, where each decides for itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dicache_compile import Schedule, configure, dicache_backend, explain, generation, report, reset, stream, summary
from dicache_compile.errors import RowsError, UnsupportedGraphError
from dicache_compile.estimators import GuidanceDifference, Reuse
from dicache_compile.rules import Estimator, Seen, SlotSpec
from dicache_compile.write.record import LOG_ROWS
from tests import models
from tests.contract.test_contract import assert_near, compiled, each_engine
from tests.contract.test_rows import MIXED, STEPS, Course, batch, course, deep_steps, run, run_alone
from tests.helpers.published import published
from tests.oracles.plain_oracle import PlainDiCache
from tests.oracles.row_oracle import PlainRows

pytestmark = pytest.mark.shares_traces
THRESHOLD = 0.1  # at which the rows of seeds 1 and 5 decide otherwise
ALL: dict[str, Any] = {"threshold": math.inf, "warmup_steps": 2, "max_consecutive_skips": 2}  # of what may be


def marks(model: Any, name: str = "0", last: int = 1) -> dict[str, str]:
    """The decisions of the streams of a name in the last generations."""
    found: dict[str, str] = {}
    for one in summary(model).generations[-last:]:
        for who, steps in one.streams.items():
            if who.startswith(name):
                found[who] = found.get(who, "") + "".join(str(step.decisions[0]) for step in steps)
    return found


@each_engine
def test_a_prompt_that_changes_in_one_row_leaves_that_row_alone_without_anchors(engine: str) -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, rows="independent", engine=engine, **ALL)
    with torch.no_grad():
        for step in range(8):
            latents, timestep, prompt = models.inputs(model, step, 8, batch=3)
            if step >= 4:
                prompt = torch.cat((prompt[:1], prompt[1:2] + 1, prompt[2:]))
            call(latents, timestep, prompt)
    found = marks(model, last=2)
    assert (found["0[0]"], found["0[2]"]) == ("dd..D..D", "dd..D..D")
    assert found["0[1]"] == "dd.." + "dd.."  # a generation of its own, by its prompt


@pytest.mark.filterwarnings("ignore:the error was infinite or not a number")
def test_a_row_with_a_nan_runs_deep_and_no_other_does() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, rows="independent", **ALL)
    clean = run(call, model, MIXED)
    reset(call)
    bad = MIXED[0]
    with torch.no_grad():
        ours = []
        for number in range(STEPS):
            latents, *more = batch(model, (bad, *MIXED[1:]), number)
            latents[0] = math.nan
            ours.append(call(latents, *more))
    for one, another in zip(ours, clean, strict=True):
        assert torch.equal(one[1:], another[1:])
        assert one[0].isnan().all()
    assert all(deep_steps(model, 3)[0][-STEPS:])


def test_one_timestep_for_all_rows_tells_each_of_them() -> None:
    class Shared(nn.Module):
        def __init__(self, inner: models.Model) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, latents: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
            return self.inner(latents, timestep.expand(latents.shape[0]), prompt)

    model = Shared(models.make(models.SingleStream))
    call = compiled(model, apart=True, rows="independent", **ALL)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(2):
            for step in range(6):
                latents, timestep, prompt = models.inputs(model.inner, step, 6, batch=2)
                call(latents, timestep[:1], prompt)
    assert marks(model) == {"0[0]": "dd..D.", "0[1]": "dd..D."}
    assert len(summary(model).generations) == 2


@pytest.mark.filterwarnings("ignore:the last generations of stream")
def test_another_batch_compiles_anew_and_another_number_of_tokens_does_not() -> None:
    model = models.make(models.SingleStream)
    options = published(rows="independent", lowering="eager", strict=True, threshold=THRESHOLD).options()
    compilations: list[int] = []

    def backend(gm: fx.GraphModule, examples: list[Any]) -> Any:
        compilations.append(len(examples))
        return dicache_backend(gm, examples, options=options)

    call = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    counts = []
    for courses, tokens in ((MIXED, 6), (MIXED, 9), (MIXED[:2], 9)):
        oracle = PlainRows(lambda: PlainDiCache(model, THRESHOLD, max_skips=3))
        sizes = {"tokens": tokens}
        assert_near(run(call, model, courses, **sizes), run_alone(oracle, model, courses, **sizes))
        counts.append(len(compilations))
    assert counts == [1, 1, 2]


@pytest.mark.filterwarnings("ignore:the model was compiled again")
@each_engine
def test_an_announced_run_counts_on_where_its_batch_changes(engine: str) -> None:
    """As where guidance that is folded into the batch ends half-way."""
    model = models.make(models.TwoStream)
    call = compiled(model, apart=True, rows="independent", engine=engine, deep_steps=(9,), **ALL)
    for _ in range(2):
        with generation(), torch.no_grad():
            for step in range(12):
                call(*models.inputs(model, step, 12, batch=4 if step < 6 else 2))
    did = summary(model).generations[-1].streams
    assert [step.index for step in did["0[1]"]] == list(range(12))
    # The new batch has no anchor on step 6, is past the warm-up, and has step 9 listed.
    assert marks(model)["0[1]"] == "dd..D." + "d..d.."
    assert [step.index for step in did["0[3]"]] == list(range(6))


def test_a_schedule_that_the_host_knows_gives_what_it_gives_rows_together() -> None:
    model = models.make(models.SingleStream)
    schedule = {"schedule": Schedule.every(3), "estimator": Reuse()}
    results = []
    for rows in ("together", "independent"):
        call = compiled(model, rows=rows, **schedule)
        with generation(), torch.no_grad():
            results.append([call(*models.inputs(model, step, STEPS, batch=3)) for step in range(STEPS)])
    for one, another in zip(*results, strict=True):
        assert torch.equal(one, another)
    assert marks(call) == {f"0[{row}]": "d..d..d..d.." for row in range(3)}


def test_of_two_calls_of_a_step_each_row_follows_the_same_row_of_the_first() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, rows="independent", joint=True, threshold=THRESHOLD)
    leaders = [PlainDiCache(model, THRESHOLD, max_skips=3) for _ in range(2)]
    followers = [PlainDiCache(model, THRESHOLD, max_skips=3, leader=leader) for leader in leaders]
    courses = {"cond": (course((STEPS,), 1), course((STEPS,), 5)), "uncond": (course((STEPS,), 9),) * 2}
    with torch.no_grad():
        for number in range(STEPS):
            for name, oracles in (("cond", leaders), ("uncond", followers)):
                arguments = batch(model, courses[name], number)
                with stream(name):
                    ours = call(*arguments)
                theirs = [one(*(part[row : row + 1] for part in arguments)) for row, one in enumerate(oracles)]
                assert_near([ours], [torch.cat(theirs)])
    assert deep_steps(model, 2, "cond") == deep_steps(model, 2, "uncond") == [one.deep for one in leaders]
    assert leaders[0].deep != leaders[1].deep


def test_guidance_that_is_estimated_from_another_call_goes_by_the_same_row() -> None:
    model = models.make(models.SingleStream)
    rule = {"sites": "model", "schedule": Schedule.every(3), "estimator": GuidanceDifference()}
    results: list[list[Tensor]] = []
    for rows in ("together", "independent"):
        call = compiled(model, rows=rows, **rule)
        results.append([])
        with torch.no_grad():
            for step in range(6):
                latents, timestep, prompt = models.inputs(model, step, 6)
                for name, sign in (("cond", 1), ("uncond", -1)):
                    with stream(name):
                        results[-1].append(call(latents, timestep, sign * prompt))
    assert all(torch.equal(one, another) for one, another in zip(*results, strict=True))
    assert marks(call, "uncond") == {"uncond[0]": "d..d..", "uncond[1]": "d..d.."}


def test_a_threshold_changes_at_run_time_for_the_generations_that_begin_after_it() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, rows="independent", **ALL)
    courses = (course((4, 8), 1), course((12,), 5))
    with torch.no_grad():
        for number in range(STEPS):
            if number == 3:
                configure(call, threshold=0.0)
            call(*batch(model, courses, number))
    found = deep_steps(model, 2)
    assert ["".join(".D"[deep] for deep in row) for row in found] == ["DD.." + "D" * 8, "DD..D..D..D."]


def test_the_summary_has_a_line_for_each_row_and_tables_name_it() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, rows="independent", **ALL)
    run(call, model, MIXED[1:])
    text = str(summary(call))
    assert "0[0]" in text
    assert "0[1]" in text
    assert {row["stream"] for row in summary(call).rows()} == {"0[0]", "0[1]"}
    assert "rows='independent'" in text
    assert "rows       each of 2 decides for itself" in str(explain(call))


def test_the_record_of_rows_keeps_whole_steps_when_it_is_full() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, rows="independent", **ALL)
    steps = LOG_ROWS // 3 + 5
    long = [Course((1,) * steps, tuple(range(steps)), steps)] * 3
    run(call, model, long)
    did = summary(model).generations[-1].streams
    kept = [[step.index for step in did[f"0[{row}]"]] for row in range(3)]
    assert kept == [list(range(steps - LOG_ROWS // 3, steps))] * 3


class Frames(nn.Module):
    """Has a timestep for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        x = latents
        for block in self.blocks:
            x = x + timestep.cos()[None, :, None] * block(x)
        return x


class TokensFirst(Frames):
    """Carries [T, B, C]."""

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(latents.transpose(0, 1), timestep).transpose(0, 1)


def by_rows(model: nn.Module) -> Any:
    return compiled(model, apart=True, rows="independent", trunk="blocks")  # type: ignore[arg-type]


def test_a_batch_that_is_not_the_first_dimension_is_refused_with_what_was_found() -> None:
    told = explain(by_rows(TokensFirst()), torch.randn(2, 6, 4), torch.ones(2))
    assert not told.cached
    assert "that has [6, 2, 4], and the latents have [2, 6, 4]" in str(told.reason)
    assert "leave out rows='independent'" in str(told.reason)


def test_a_timestep_of_other_rows_is_refused() -> None:
    told = explain(by_rows(Frames()), torch.randn(2, 6, 4), torch.ones(6))
    assert not told.cached
    assert "neither one for all of 2 rows nor one for each" in str(told.reason)


class Asks(Estimator):
    """An estimator that asks for a value."""

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("r"),)

    def estimate(self, seen: Seen) -> Tensor:
        if bool(seen.index > 3):
            return seen.x.float()
        return seen.x.float() + seen.state["r"].float()

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"r": seen.y.float() - seen.x.float()}


def test_an_estimator_that_cannot_be_run_for_each_row_is_named() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, rows="independent", estimator=Asks(), threshold=0.1)
    with pytest.raises(Exception, match=r"Asks\.estimate cannot be run for each row of a batch alone"), torch.no_grad():
        call(*models.inputs(model, 0, 8))


def test_rows_are_together_or_independent() -> None:
    with pytest.raises(ValueError, match="rows: expected one of 'together', 'independent', got 'alone'"):
        compiled(models.make(models.SingleStream), rows="alone")
    assert issubclass(RowsError, UnsupportedGraphError)
    assert "rows='independent'" in RowsError.advice


def test_the_page_has_a_course_for_each_row(tmp_path: Path) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, rows="independent", **ALL)
    run(call, model, MIXED[1:])
    page = report(call, tmp_path / "page.html").read_text()
    assert "0[0]" in page
    assert "0[1]" in page
    assert "steps of single rows" in page
