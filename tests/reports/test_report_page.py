"""The page that `report` writes: what is on it, for models of every state, and that nothing breaks it."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import stat
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import (
    SiteRule,
    configure,
    dicache_backend,
    disable_cache,
    enable_cache,
    explain,
    report,
    reset,
    stream,
    summary,
)
from dicache_compile.report import data
from dicache_compile.report.data import Section, sections
from dicache_compile.report.tracks import DEEP
from dicache_compile.summary import COLUMNS
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.models import Mixed, SingleStream
from tests.reports.test_subjects import Pipe, refused

pytestmark = pytest.mark.shares_traces

ODD = """<b>"bold" & 'odd'</b><script>window.hacked = true</script></code>&lt;"""
TWO_RULES = (SiteRule(sites=(0, 2), threshold=0.5), SiteRule(sites=(2, 4), threshold=math.inf))
EMPTY = ("meta", "link", "path", "br")


class Page(HTMLParser):
    """The elements of a page with their texts; fails where they are not nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in EMPTY:
            return
        self._open.append(tag)
        if tag == "table":
            self._rows: list[list[str]] = []
        elif tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "caption"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY, tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th", "caption"):
            text = "".join(self._cell or [])
            if tag == "caption":
                self._caption = text
            else:
                self._rows[-1].append(text)
            self._cell = None
        elif tag == "table":
            self.tables.setdefault(self._caption, self._rows)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)
            if self._cell is not None:
                self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        found = [own for name, own in self.elements if name == tag]
        return [own for own in found if all(own.get(name) == value for name, value in attributes.items())]

    def download(self, name: str) -> str:
        (link,) = self.of("a", download=name)
        kind, _, data = (link["href"] or "").partition(";charset=utf-8;base64,")
        assert kind in ("data:text/csv", "data:application/json")
        return base64.b64decode(data).decode()


def page_of(given: Any, folder: Path) -> Page:
    return Page(report(given, folder / "page.html").read_text(encoding="utf-8"))


def ran(generations: int = 1, kind: type[models.Model] = SingleStream, **config: Any) -> Any:
    model = models.make(kind)
    call = compiled(model, **config)
    for _ in range(generations):
        generate(call, model)
    return call


def test_the_page_tells_what_explain_and_summary_tell(tmp_path: Path) -> None:
    call = ran(kind=Mixed, threshold=10.0, error="estimate")
    page, told = page_of(call, tmp_path), explain(call)
    steps = summary(call).generations[-1].streams["0"]
    deep = sum(step.deep for step in steps)
    assert f"In the newest generation {deep} of {STEPS} steps ran deep" in page.text
    for fact in ("double_blocks.0", f"double_blocks.1 ... single_blocks.1 ({len(told.deep)})", "calls"):
        assert fact in page.words
    head, *rows = page.tables["Stream 0, step by step"]
    assert head == ["step", "timestep", "decision", "error", "compared", "gamma", "time"]
    for row, step in zip(rows, steps, strict=True):
        assert row[0] == str(step.index)
        assert row[2].startswith("deep" if step.deep else "reused")
        assert row[3] == ("\N{EN DASH}" if step.error is None else f"{step.error:.4g}")
        assert (row[5] == "\N{EN DASH}") == step.deep
        assert re.fullmatch(r"[\d.]+ m?s", row[6])
    shares = page.tables["Shares of all operations"][1:]
    assert [row[0] for row in shares] == ["prologue", *told.blocks, "epilogue"]
    rounding = 0.005 * len(shares)
    assert sum(float(row[1].rstrip("%")) for row in shares) == pytest.approx(100, abs=rounding)
    assert sum(float(row[2].rstrip("%")) for row in shares) == pytest.approx(100 * told.skippable, abs=rounding)
    changed = page.tables["Fields that are not as by default"]
    assert ["threshold", "10.0", "None"] in changed
    assert [row[0] for row in page.tables["What it was made with"][1:]][:2] == ["dicache_compile", "torch"]


def test_the_boxes_of_the_cut_are_as_wide_as_the_work(tmp_path: Path) -> None:
    call = ran(kind=Mixed)
    text = report(call, tmp_path / "page.html").read_text(encoding="utf-8")
    told = explain(call)
    box = r'<title>(\S+): [\d.]+% of the operations</title><path class="(\S+)" d="M(\S+) 0H(\S+)V'
    drawn = re.findall(box, text)
    for part in told.parts:
        widths = [float(end) - float(start) for name, kind, start, end in drawn if name == part.name and kind == "site"]
        # A number of the drawing has five digits, and the drawing is 1000 wide.
        assert sum(widths) == pytest.approx(1000 * part.skippable, abs=0.06)


def two_streams(joint: bool) -> tuple[Any, Section]:
    model = models.make(SingleStream)
    call = compiled(model, joint=joint)
    for name in ("a", "b"):
        with stream(name):
            generate(call, model)
    (section,) = sections(call)
    return call, section


def test_the_state_is_told_by_slot_and_by_stream(tmp_path: Path) -> None:
    call, section = two_streams(joint=False)
    held = explain(call).state_bytes
    assert sum(slot.bytes for slot in section.memory.slots) == held
    assert section.memory.streams == (("a", held), ("b", held))
    assert section.memory.bytes == 2 * held
    page = page_of(call, tmp_path)
    slots = {row[0]: row for row in page.tables["Slots of stream b"][1:]}
    assert re.findall(r"\d+", slots["r.0.0"][2]) == ["2", "6", "16"]
    assert slots["r.0.0"][4] == "for the estimator, DCTA"
    assert "2 streams have state" in page.text
    reset(call)
    assert "No stream has state now" in page_of(call, tmp_path).text


def test_what_streams_share_is_counted_once(tmp_path: Path) -> None:
    call, section = two_streams(joint=True)
    shared = sum(slot.bytes for slot in section.memory.slots if slot.name in ("leader_time", "leader_reuses"))
    assert shared > 0
    assert section.memory.bytes == 2 * explain(call).state_bytes - shared


def test_the_newest_generation_is_open_and_stands_first(tmp_path: Path) -> None:
    call = ran(generations=2, threshold=0.0)
    configure(call, threshold=10.0)
    generate(call, call._orig_mod)
    page = page_of(call, tmp_path)
    assert ["open" in one for one in page.of("details", **{"class": "generation"})] == [True, False, False]
    names = [word for word in page.words if word.startswith(("Newest generation", "Generation "))]
    assert names == ["Newest generation", "Generation 1", "Generation 0"]
    did = summary(call).generations
    assert [word for word in page.words if word in {one.config.brief() for one in did}] == [
        one.config.brief() for one in reversed(did)
    ]


def test_the_reason_of_each_deep_step_is_told() -> None:
    call = ran(threshold=10.0, max_consecutive_skips=2)
    (section,) = sections(call)
    (track,) = section.past[0].courses[0].tracks
    kinds = ["forced"] * 3 + ["reused", "reused", "limited"] * 2 + ["reused"]
    assert [mark.kind for mark in track.marks] == kinds
    assert track.marks[5].why == "deep: 2 steps in a row had been reused"
    call = ran(threshold=0.0)
    (track,) = sections(call)[0].past[0].courses[0].tracks
    assert {mark.why for mark in track.marks[3:]} == {"deep: the error reached the threshold"}


def test_what_quality_gives_is_told(tmp_path: Path) -> None:
    enabled = enable_cache(models.make(SingleStream), quality="fast", threshold=0.5)
    page = page_of(enabled, tmp_path)
    assert ["quality", "'fast'", "'balanced'"] in page.tables["Fields that are not as by default"]
    given = {row[0]: row[1] for row in page.tables["Fields that quality gives"][1:]}
    settled = enabled.config.settled()
    fields = ("gamma_range", "order", "error", "max_consecutive_skips")
    assert given == {name: repr(getattr(settled, name)) for name in fields}


def test_every_rule_has_a_track_and_a_bar_of_its_own(tmp_path: Path) -> None:
    call = ran(rules=TWO_RULES)
    page = page_of(call, tmp_path)
    steps = summary(call).generations[-1].streams["0"]
    for rule, told in enumerate(explain(call).rules):
        assert f"Rule {rule + 1}, on {told.skips}" in page.words
        deep = sum(step.decisions[rule].deep for step in steps)  # type: ignore[union-attr]
        assert f"Rule {rule + 1}: {deep} of {STEPS} steps ran deep" in page.text
        assert f"rule {rule + 1} reused" in page.words
    rows = page.tables["Stream 0, step by step"]
    assert rows[0][1] == "rule"
    assert [row[:2] for row in rows[1:3]] == [["0", "1"], ["0", "2"]]


def test_the_operations_done_are_those_of_the_parts_that_ran() -> None:
    call = ran(rules=TWO_RULES)
    (section,) = sections(call)
    told, steps = explain(call), summary(call).generations[-1].streams["0"]
    done = 0.0
    for step in steps:
        left = [rule for rule, one in enumerate(step.decisions) if one is not None and not one.deep]
        done += sum(part.share - sum(part.by_rule[rule] for rule in left) for part in told.parts)
    assert section.past[0].work == pytest.approx(done / len(steps))
    assert 0.3 < done / len(steps) < 0.9


def test_a_model_that_was_not_called_says_so(tmp_path: Path) -> None:
    page = page_of(compiled(models.make(SingleStream), threshold=0.3), tmp_path)
    assert "Nothing is recorded: this model has not been called since it was compiled." in page.words
    assert ["threshold", "0.3", "None"] in page.tables["Fields that are not as by default"]
    assert not page.of("figure")


def test_a_refused_model_says_why(tmp_path: Path) -> None:
    call = refused()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generate(call, call._orig_mod, steps=2)
    page = page_of(call, tmp_path)
    assert f"Not cached: {explain(call).reason}." in page.words
    assert not page.of("figure")


def test_a_pipeline_has_a_section_for_each_compiled_model(tmp_path: Path) -> None:
    first, second = ran(threshold=10.0), compiled(models.make(Mixed))
    page = page_of(Pipe(transformer=first, transformer_2=second, text_encoder=models.make(SingleStream)), tmp_path)
    titles = ["transformer: SingleStream", "transformer_2: Mixed"]
    assert [word for word in page.words if word in titles] == titles
    assert [one.get("id") for one in page.of("article")] == ["model-0", "model-1"]
    assert {link["href"] for link in page.of("a")} >= {"#model-0", "#model-1"}
    assert page.download("dicache-transformer.csv") == summary(first).to_csv()
    told = json.loads(page.download("dicache.json"))
    assert [one["name"] for one in told["models"]] == ["transformer", "transformer_2"]


def test_names_are_text_whatever_they_are(tmp_path: Path) -> None:
    model = models.make(SingleStream)
    call = compiled(model)
    with stream(ODD):
        generate(call, model)
    page = page_of(call, tmp_path)
    assert ODD in page.words
    assert f"Stream {ODD}, step by step" in page.tables
    assert not page.of("b", **{"class": ""})
    assert len(page.of("script")) == 1
    assert {row["stream"] for row in csv.DictReader(io.StringIO(page.download("dicache.csv")))} == {ODD}


@torch.no_grad()
def broken(values: dict[int, float]) -> Any:
    """A model of which some calls got such numbers in place of latents."""
    model = models.make(models.TwoStream)
    call = compiled(model, error="estimate", threshold=1e9)
    for step in range(STEPS):
        latents, *rest = models.inputs(model, step, STEPS)
        call(torch.full_like(latents, values[step]) if step in values else latents, *rest)
    return call


def test_errors_that_are_no_number_are_told(tmp_path: Path) -> None:
    call = broken({4: math.nan})
    page = page_of(call, tmp_path)
    (track,) = sections(call)[0].past[0].courses[0].tracks
    lost = [step for step, mark in enumerate(track.marks) if mark.is_nan]
    assert 4 in lost
    assert page.tables["Stream 0, step by step"][1 + 4][2:5] == ["deep: the error is not a number", "NaN", "NaN"]
    assert f"\N{MULTIPLICATION SIGN} {len(lost)} error" in page.text
    json.loads(page.download("dicache.json"), parse_constant=pytest.fail)


def test_infinite_errors_and_thresholds_are_drawn_and_told(tmp_path: Path) -> None:
    model = models.make(SingleStream)
    call = compiled(model, threshold=math.inf)
    generate(call, model)
    page = page_of(call, tmp_path)
    assert "\N{INFINITY}" in page.words
    told = json.loads(page.download("dicache.json"), parse_constant=pytest.fail)
    assert told["models"][0]["explain"]["config"]["threshold"] == "inf"
    drawn = report(broken({5: math.inf}), tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf)\b", " ".join(re.findall(r' (?:d|style)="([^"]*)"', drawn)))


def test_hundreds_of_steps_make_no_large_page(tmp_path: Path) -> None:
    model = models.make(SingleStream)
    call = compiled(model, threshold=10.0)
    generate(call, model, steps=400)
    path = report(call, tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.tables["Stream 0, step by step"]) == 401
    assert path.stat().st_size < 400 * 1000  # bytes a step: two rows of tables as text, one of them in base64
    numbers = page.of("div", **{"class": "axis"})
    assert len(numbers) == 1


def test_the_numbers_inside_are_those_of_the_summary(tmp_path: Path) -> None:
    call = ran(threshold=10.0)
    page = page_of(call, tmp_path)
    did = summary(call)
    assert page.download("dicache.csv") == did.to_csv()
    assert tuple(next(csv.reader(io.StringIO(page.download("dicache.csv"))))) == COLUMNS
    told = json.loads(page.download("dicache.json"), parse_constant=pytest.fail)
    assert told["models"][0]["summary"] == did.to_dict()
    assert told["models"][0]["explain"]["blocks"] == list(explain(call).blocks)
    assert told["versions"]["torch"] == torch.__version__


def test_nothing_on_the_page_is_of_another_place(tmp_path: Path) -> None:
    text = report(ran(), tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    for _, attributes in page.elements:
        assert not {"src", "srcset", "action", "onload", "onclick", "onerror"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    (policy,) = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_page_is_written_for_people_who_hear_it(tmp_path: Path) -> None:
    page = page_of(ran(rules=TWO_RULES), tmp_path)
    assert page.of("html", lang="en")
    for drawing in page.of("svg"):
        assert drawing.get("aria-hidden") == "true"  # told in words and in a table
    for slider in page.of("div", role="slider"):
        assert slider.get("aria-label")
        assert slider.get("aria-valuemax") == str(STEPS - 1)
    assert {head.get("scope") for head in page.of("th")} == {"col", "row"}
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [own["id"] for _, own in page.elements if "id" in own]
    assert len(ids) == len(set(ids))


def test_on_a_gpu_time_is_that_between_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There a call returns before its work is done."""
    call = ran(threshold=10.0)
    monkeypatch.setattr(data, "_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    page = page_of(call, tmp_path)
    (section,) = sections(call)
    (course,) = section.past[0].courses
    steps = summary(call).generations[0].streams["0"]
    began = [step.began or 0.0 for step in steps]
    assert course.times == (*(after - before for before, after in pairwise(began)), None)
    assert "time between calls (host)" in page.text
    assert "no measurement of the device" in page.text
    assert "cuda:0: NVIDIA H200" in page.text


def test_the_page_takes_the_place_of_an_older_one_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ran()
    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.chdir(tmp_path)
    assert report(call, "page.html") == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    fresh = tmp_path / "plain"
    fresh.touch()
    assert stat.S_IMODE(report(call, tmp_path / "new.html").stat().st_mode) == stat.S_IMODE(fresh.stat().st_mode)
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        report(call, path)
    assert path.read_text() == "old"
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_what_cannot_be_written_or_told_of_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    call = ran()
    with pytest.raises(IsADirectoryError, match=r"is a folder: name a file in it, as in .*page\.html"):
        report(call, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing: make it first"):
        report(call, tmp_path / "missing" / "page.html")
    with pytest.raises(TypeError, match="path: expected the path of the file to write, got int"):
        report(call, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="path: expected the path of the file to write, got ''"):
        report(call, "")
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, compiled or not, or a pipeline, got str"):
        report("model", tmp_path / "page.html")
    with pytest.raises(TypeError, match="no model of this Pipe is compiled"):
        report(Pipe(transformer=models.make(SingleStream)), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_clock_of_the_page_and_of_the_record_agree() -> None:
    """On a CPU the times are those of the calls."""
    call = ran()
    (course,) = sections(call)[0].past[0].courses
    assert course.times == tuple(step.seconds for step in summary(call).generations[0].streams["0"])
    assert course.median(*DEEP) is not None


def test_what_enable_cache_returned_has_a_page(tmp_path: Path) -> None:
    enabled = enable_cache(model := models.make(SingleStream), threshold=10.0, compile=False)
    assert "has not been called since it was compiled" in page_of(enabled, tmp_path).text
    generate(model, model)
    assert "of 10 steps ran deep" in page_of(enabled, tmp_path).text
    disable_cache(enabled)
    assert "No stream has state now" in page_of(model, tmp_path).text


def test_a_model_compiled_in_place_has_a_page(tmp_path: Path) -> None:
    model = models.make(SingleStream)
    model.compile(backend=dicache_backend, options={"lowering": "eager", "threshold": 10.0})
    outputs: list[Tensor] = generate(model, model)
    assert len(outputs) == STEPS
    assert "of 10 steps ran deep" in page_of(model, tmp_path).text
