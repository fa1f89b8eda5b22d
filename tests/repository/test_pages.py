"""What the pages say holds: their length, their links, their tables and their figures."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dicache_compile import DiCacheConfig, Schedule, explain, summary
from dicache_compile.estimators import Reuse
from dicache_compile.fields import RUN_TIME
from dicache_compile.presets import METHODS
from dicache_compile.qualities import THRESHOLDS
from tests.helpers.pages import DOCS, PAGES, README, ROOT, anchors, blocks, links, tables, words

CONFIGURATION = ROOT / "docs" / "configuration.md"
SETTINGS = ROOT / "docs" / "settings.md"


def by_path(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len(README.read_text().split()) <= 900  # code, tables and pictures too


def test_words_are_counted_as_a_reader_would() -> None:
    unread = "![a picture](a.png)\n<!-- hidden -->\n| a | table |\n|---|---|\n\n```\ncode\n```\n"
    text = f"# Two words\n{unread}- [a link](b.md).\n"
    assert words(text) == ["Two", "words", "a", "link."]


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / link).resolve() for link in links(index.read_text())}
    assert {page for page in DOCS if page != index} <= named


def test_the_page_of_differences_has_every_preset_and_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "differences.md").read_text()
    sources = " ".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    assert [name for name in named if f"def {name}(" not in sources] == []
    methods = {re.split(r", | \(", method.source)[0] for method in METHODS.values()}
    assert [name for name in methods if name not in text] == []


def test_the_page_of_fields_is_what_the_docstrings_say() -> None:
    fields = pytest.importorskip("bench.fields", reason="it writes the page")
    assert fields.PAGE.read_text() == fields.page()
    assert all(f"| `{field.name}`" in fields.page() for field in dataclasses.fields(DiCacheConfig))


def test_the_page_of_methods_is_what_its_parts_say_and_names_tests_that_there_are() -> None:
    methods = pytest.importorskip("bench.methods", reason="it writes the page")
    assert methods.PAGE.read_text() == methods.page()
    for system in methods.SYSTEMS:
        file, _, name = system.test.partition(": ")
        assert not file or any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").rglob(file)), system
        assert bool(system.how) == (system.covered in ("yes", "partly"))
    presets = {system.how for system in methods.SYSTEMS}
    assert set(METHODS) - presets <= {"hunyuan", "wan"}


def test_the_configuration_page_names_the_fields_that_can_be_changed_at_run_time() -> None:
    (table,) = [table for table in tables(CONFIGURATION.read_text()) if table[0][0] == "can be changed so"]
    assert table[1][0].replace("`", "").split(", ") == list(RUN_TIME)


def test_the_configuration_page_counts_the_tensors_that_are_kept() -> None:
    (table,) = [table for table in tables(CONFIGURATION.read_text()) if table[0] == ["settings", "tensors a stream"]]
    for settings, count in table[1:]:
        config = eval(settings.strip("`"), {"DiCacheConfig": DiCacheConfig, "Reuse": Reuse, "Schedule": Schedule})
        kept = config.rules_in_force()[0].slots()
        assert sum(max(slot.history, 1) for slot in kept if slot.like == "carried") == int(count), settings


@pytest.mark.parametrize(("page", "workloads"), [(README, ["shapes FLUX"]), (SETTINGS, ["shapes FLUX", "clips Wan"])])
def test_the_figures_of_the_qualities_are_those_of_the_benchmark(page: Path, workloads: list[str]) -> None:
    rows = [json.loads(line) for line in (ROOT / "versus" / "results" / "full.jsonl").read_text().splitlines()]
    (table,) = [table for table in tables(page.read_text()) if table[0][0] == "`quality`" and len(table[0]) > 2]
    for line, name in zip(table[1:], THRESHOLDS, strict=True):
        expected = []
        for workload in workloads:
            (figures,) = [
                row["figures"]
                for row in rows
                if (row["experiment"], row["workload"], row["system"]) == ("own", workload, "dicache_compile")
                and row["setting"].get("quality") == name
            ]
            quality = f"{figures['PSNR mean']:.1f} / {figures['PSNR worst']:.1f}"
            expected += [f"{figures['deep steps']:.1f}", f"{figures['speed-up']:.2f}x", quality]
        assert line[0].startswith(f'`"{name}"`')
        assert line[1:] == expected


def test_the_pages_show_what_explain_and_summary_print() -> None:
    systems = pytest.importorskip("bench.systems", reason="the demo's model is diffusers'")
    from bench.shapes.model import generate, load

    model = load()
    config = dataclasses.replace(systems.CACHED["balanced"], lowering="eager")
    model.compile(backend="dicache", fullgraph=True, options=config.options())
    generate(model, [("circle", "red")], seed=0, steps=systems.STEPS)
    # The pages show the default lowering, which prints the same.
    told, did = (str(report(model)).replace("lowering='eager'", "quality='balanced'") for report in (explain, summary))
    for page in (README, ROOT / "docs" / "reports.md"):
        shown = blocks(page.read_text())
        assert f"{told}\n" in shown
        assert f"{did}\n" in shown
    assert f"{did}\n" in blocks((ROOT / "docs" / "start.md").read_text())


@pytest.mark.exhaustive
def test_the_demo_prints_nothing_that_other_libraries_have_to_say() -> None:
    pytest.importorskip("diffusers", reason="the demo's model is diffusers'")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    load = [sys.executable, "-c", "from bench import demo; print(demo.sampling().LEGEND)"]
    done = subprocess.run(load, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert "speed-up" in done.stdout
    assert done.stderr == ""


def test_the_picture_is_small_enough_to_load_at_once() -> None:
    assert (ROOT / "docs" / "demo.png").stat().st_size < 300_000


@pytest.mark.parametrize("model", ["flux", "wan"])
def test_the_page_of_quantised_models_has_the_rows_that_were_measured(model: str) -> None:
    low_precision = pytest.importorskip("bench.low_precision", reason="it measures them")
    text = (ROOT / "docs" / "low-precision.md").read_text()
    assert low_precision.table(low_precision.read(), model) in text
    assert low_precision.default_table(low_precision.read()) in text
