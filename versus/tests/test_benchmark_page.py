"""The benchmark's page and its check for regressions, on rows made by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from versus import page, plots, regress, sweep, tables
from versus.bars import GUARDS_ONCE, Bar, bars, most_over_the_best_peer
from versus.rows import Row, commit, read
from versus.rows import replace as store

OURS, PEER = "dicache_compile", "FirstBlockCache"
FLUX, WAN = "shapes FLUX", "clips Wan"
SEEDS = 8
SMALLEST = sweep.workload(*sweep.SIZES[0]).name


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    """In the place of the common one, which takes seconds: nothing is compiled here."""


def made(
    experiment: str,
    system: str,
    role: str,
    figures: Mapping[str, float],
    samples: Sequence[float] = (),
    workload: str = FLUX,
    why: str = "",
) -> Row:
    return Row(
        experiment, workload, system, "threshold 0.1", role, dict(figures), {"speed-up": list(samples)}, why,
        "a package 1.0", "torch.compile(model)", machine="machine A", versions={"torch": "2.11.0"}, commit="c0ffee",
        date="2026-01-01", run="the first",
    )  # fmt: skip


def timed(
    experiment: str, system: str, speed_up: float, workload: str = FLUX, spread: float = 0.0, seed: int = 0
) -> Row:
    noise = np.random.default_rng(seed).normal(1, spread, 32) if spread else np.ones(32)
    samples = [float(speed_up * factor) for factor in noise]
    figures = {"speed-up": float(np.median(samples)), "seconds median": 1 / speed_up}
    row = made(experiment, system, "schedule", figures, samples, workload)
    row.samples["seconds"] = [1 / sample for sample in samples]
    return row


def drawn(system: str, role: str, mean: float, worst: float, deep: float, speed_up: float = 2.0) -> Row:
    figures = {"PSNR mean": mean, "PSNR p5": worst, "PSNR worst": worst, "deep steps": deep, "speed-up": speed_up}
    return made("own" if role == "own" else "equal", system, role, figures, [speed_up] * SEEDS)


def ours_as(peer: Row, ours: Row) -> Row:
    """A peer as fast as ours on every seed."""
    return replace(peer, samples=ours.samples, figures=ours.figures)


def bar(rows: Sequence[Row], *words: str) -> Bar:
    (found,) = [bar for bar in bars(rows) if all(word in bar.text for word in words)]
    return found


def test_a_bar_without_rows_is_not_measured() -> None:
    assert {bar.reached for bar in bars([])} == {None}
    assert all(bar.verdict == "not measured" for bar in bars([]))
    ours_alone = bar([timed("schedule", OURS, 2.0)], FLUX, "fastest")
    assert (ours_alone.reached, ours_alone.peer) == (None, "no peer was measured")


def test_the_fastest_is_against_the_best_peer_on_the_same_schedule() -> None:
    uncounted = replace(timed("schedule", "uncached", 9.0), role="baseline"), timed("schedule", "fewer steps", 9.0)
    slower = [timed("schedule", OURS, 2.0), timed("schedule", PEER, 1.6), timed("schedule", "MagCache", 1.8)]
    reached = bar([*slower, *uncounted], FLUX, "fastest")
    assert reached.reached
    assert "MagCache" in reached.peer
    assert reached.margin.startswith("1.11x")
    missed = bar([*slower, timed("schedule", "DBCache", 2.1)], FLUX, "fastest")
    assert missed.verdict == "**MISSED**"
    assert bar(slower, WAN, "fastest").reached is None


def test_the_smallest_size_has_to_be_ahead_by_more() -> None:
    rows = [timed("sweep", OURS, 2.0, SMALLEST), timed("sweep", PEER, 1.6, SMALLEST)]
    assert bar(rows, SMALLEST, "fastest").reached
    assert bar(rows, f"{SMALLEST}: at least 1.3x").reached is False


def test_with_guards_once_each_systems_better_way_counts() -> None:
    ours, peer = timed("sweep", OURS, 2.0, SMALLEST), timed("sweep", PEER, 1.6, SMALLEST)
    assert bar([ours, peer], SMALLEST, "once a generation").verdict == "not measured"
    ours_once, peer_once = (replace(timed("sweep", row.system, speed_up, SMALLEST), role=GUARDS_ONCE)
                            for row, speed_up in ((ours, 2.2), (peer, 1.5)))  # fmt: skip
    ahead = bar([ours, peer, ours_once, peer_once], SMALLEST, "once a generation")
    assert (ahead.ours, ahead.peer) == ("2.20x (threshold 0.1, guards once)", f"1.60x ({PEER}, threshold 0.1)")
    assert ahead.reached
    refused = replace(peer_once, figures={}, samples={}, why="RuntimeError: x")
    assert bar([ours, peer, ours_once, refused], SMALLEST, "once a generation").peer == ahead.peer
    assert bar([ours, peer, ours_once], SMALLEST, "once a generation").verdict == "not measured"
    level = bar([ours, peer, ours_once, ours_as(peer_once, ours_once)], SMALLEST, "once a generation")
    assert level.peer == f"2.20x ({PEER}, threshold 0.1, guards once)"
    assert bar([ours, peer, ours_once, peer_once], f"{SMALLEST}: at least 1.3x").ours == "2.00x (threshold 0.1)"


def test_guards_once_is_a_table_of_its_own(tmp_path: Path) -> None:
    rows = [timed("sweep", OURS, 2.0, SMALLEST), replace(timed("sweep", OURS, 2.2, SMALLEST), role=GUARDS_ONCE)]
    refused = replace(made("sweep", PEER, "schedule", {}, why="RuntimeError: x", workload=SMALLEST), role=GUARDS_ONCE)
    text = _written([*rows, refused], tmp_path)
    first, second = text.split("### Guards checked once a generation")
    assert "2.00x" in first
    assert "2.20x" not in first.split("## Where host cost matters")[1]
    assert "2.20x" in second
    assert "sweep, guards once | RuntimeError: x" in second
    with_both = imread(tmp_path / "benchmarks" / "overhead.png")
    assert "### Guards checked once" not in _written(rows[:1], tmp_path)
    assert np.array_equal(imread(tmp_path / "benchmarks" / "overhead.png"), with_both)  # nor in the plot


def _written(rows: Sequence[Row], folder: Path) -> str:
    file = folder / "some.jsonl"
    file.unlink(missing_ok=True)
    store(file, rows)
    page.write(file, folder / "benchmarks.md")
    return (folder / "benchmarks.md").read_text()


def test_the_most_to_be_had_leaves_out_what_reused_calls_took() -> None:
    ours, peer = timed("sweep", OURS, 2.0, SMALLEST), timed("sweep", PEER, 1.6, SMALLEST)  # 0.5 and 0.625 seconds
    assert most_over_the_best_peer(SMALLEST, [ours, peer]) is None
    ours.figures.update({"reused call ms": 5.0, "deep steps": 10.0})  # 20 of them, 0.1 seconds
    assert most_over_the_best_peer(SMALLEST, [ours, peer]) == pytest.approx(0.625 / 0.4)
    assert most_over_the_best_peer(SMALLEST, [ours]) is None
    assert most_over_the_best_peer(SMALLEST, [ours, replace(peer, run="another")]) is None


def test_a_margin_is_paired_by_seed() -> None:
    ours, peer = (made("schedule", name, "schedule", {"speed-up": 2.0}, [1.0, 2.0, 3.0]) for name in (OURS, PEER))
    peer.samples["speed-up"] = [0.5, 1.0, 1.5]
    assert bar([ours, peer], FLUX, "fastest").margin == "2.00x (2.00-2.00)"
    apart = bar([ours, replace(peer, run="another")], FLUX, "fastest")
    assert (apart.reached, apart.margin) == (True, "1.00x (measured apart)")


def test_speeds_that_noise_alone_may_tell_apart_are_level() -> None:
    ours, peer = (timed("schedule", name, 2.0, spread=0.03, seed=seed) for seed, name in enumerate((OURS, PEER)))
    assert bar([ours, peer], FLUX, "fastest").verdict == "level"
    assert bar([ours, ours_as(peer, ours)], FLUX, "fastest").verdict == "level"
    faster = timed("schedule", OURS, 2.1, spread=0.03)
    assert bar([faster, peer], FLUX, "fastest").verdict == "reached"
    assert bar([replace(peer, system=OURS), replace(faster, system=PEER)], FLUX, "fastest").verdict == "**MISSED**"


def test_quality_has_to_be_the_best_in_mean_and_in_worst() -> None:
    best_mean = drawn(PEER, "15 deep", 35, 30, 15), drawn(OURS, "15 deep", 36, 29, 15)
    assert bar(best_mean, FLUX, "15 deep").reached is False
    both = drawn(PEER, "15 deep", 35, 30, 15), drawn(OURS, "15 deep", 36, 31, 15.2)
    assert bar(both, FLUX, "15 deep").reached
    assert bar(both, FLUX, "15 deep").margin == "+1.0 and +1.0 dB"
    assert bar(both, FLUX, "10 deep").reached is None
    assert bar([*both, drawn(OURS, "15 deep", 38, 29, 15)], FLUX, "15 deep").reached  # by the one that has both
    apart = drawn(OURS, "15 deep", 34, 31, 15), drawn(OURS, "15 deep", 38, 29, 15)
    assert bar([both[0], *apart], FLUX, "15 deep").reached is False


def test_more_deep_steps_than_asked_are_not_equal() -> None:
    rows = drawn(PEER, "10 deep", 30, 25, 10), drawn(OURS, "10 deep", 36, 31, 11)
    assert bar(rows, FLUX, "10 deep").reached is False


def test_equal_quality_counts_only_settings_that_reach_it() -> None:
    rows = [drawn(OURS, "own", 34, 30, 8, 3.0), drawn(OURS, "10 deep", 35.5, 31, 10, 2.0)]
    assert bar([*rows, drawn(PEER, "own", 36, 31, 12, 1.8)], FLUX, "35 dB").reached
    assert bar([*rows, drawn(PEER, "own", 36, 31, 12, 2.5)], FLUX, "35 dB").reached is False
    assert bar([rows[0], drawn(PEER, "own", 30, 20, 12)], FLUX, "35 dB").ours == "no setting of ours"


def test_ours_that_did_not_run_misses_with_its_reason() -> None:
    rows = [timed("schedule", PEER, 2.0), made("schedule", OURS, "schedule", {}, why="KeyError: 'x'")]
    assert bar(rows, FLUX, "fastest") == Bar(bar(rows, FLUX, "fastest").text, False, "did not run: KeyError: 'x'")


def test_a_page_of_little_says_what_is_missing_and_what_did_not_run(tmp_path: Path) -> None:
    why = "ValueError: <class 'A'> has no a|b"
    rows = [timed("schedule", OURS, 2.0), timed("schedule", PEER, 1.0), made("costs", "MagCache", "own", {}, why=why)]
    rows += [drawn(OURS, "own", 36, 31, 12), timed("sweep", OURS, 2.0, SMALLEST)]
    store(tmp_path / "rows.jsonl", rows)
    written = tmp_path / "docs" / "benchmarks.md"
    page.write(tmp_path / "rows.jsonl", written)
    text = written.read_text()
    assert "| MagCache | threshold 0.1 | costs | ValueError: &lt;class 'A'> has no a\\|b |" in text
    assert "| **dicache_compile** | threshold 0.1 | 2.00x |" in text
    assert "Not measured." in text.partition(f"## {WAN}")[2]
    assert all(word in text for word in ("machine A", "torch 2.11.0", "`c0ffee`", "2026-01-01"))
    linked = {tmp_path / "docs" / line.split("(")[1].rstrip(")") for line in text.splitlines() if line[:2] == "!["}
    assert linked == set((tmp_path / "docs" / "benchmarks").iterdir())
    assert {path.name for path in linked} == {"flux-pareto.png", "overhead.png"}


def test_a_system_that_is_measured_again_loses_what_it_had_there_and_no_other_does(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    others = [drawn(PEER, "15 deep", 39, 29, 15), drawn(OURS, "own", 40, 30, 15), timed("schedule", OURS, 2.0)]
    store(file, [drawn(OURS, "15 deep", 40, 30, 15), drawn(OURS, "7 deep", 30, 20, 7), *others])
    again = replace(drawn(OURS, "15 deep", 41, 31, 15), label="another setting")
    store(file, [again])
    assert read(file) == [*others, again]


def test_a_row_says_whether_the_code_was_committed_whatever_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(("git", *who, *words), cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    code, *written = (tmp_path / path for path in ("versus/rows.py", "versus/results/a.jsonl", "docs/benchmarks.md"))
    for file in (code, *written):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    monkeypatch.setattr("versus.rows.__file__", str(code))
    for file in written:
        file.write_text("more")
    clean = commit.__wrapped__()
    assert git("rev-parse", "HEAD").startswith(clean)
    code.write_text("more")
    assert commit.__wrapped__() == clean + "+"


def test_a_page_of_nothing_has_no_pictures(tmp_path: Path) -> None:
    store(tmp_path / "rows.jsonl", [])
    page.write(tmp_path / "rows.jsonl", tmp_path / "benchmarks.md")
    assert "![" not in (tmp_path / "benchmarks.md").read_text()


def test_the_page_says_on_how_many_seeds_settings_were_tuned(tmp_path: Path) -> None:
    rows = [replace(drawn(OURS, role, 36, 31, 15), tuned_on=seeds) for role, seeds in (("15 deep", 3), ("7 deep", 15))]
    store(tmp_path / "rows.jsonl", rows)
    page.write(tmp_path / "rows.jsonl", tmp_path / "benchmarks.md")
    assert "Settings tuned on 3 or 15 other seeds." in (tmp_path / "benchmarks.md").read_text()


def test_what_tune_told_stands_beside_what_was_measured() -> None:
    figures = {"PSNR mean": 37.5, "PSNR p5": 33.0, "PSNR worst": 32.0, "deep steps": 5.0, "speed-up": 5.1}
    told = {"expected PSNR": 38.25, "expected speed-up": 5.75}
    rows = [
        replace(made("found", "tune", f"{deep} deep", figures | told), setting={"deep": deep}) for deep in (5, 10)
    ] + [made("found", "uncached", "baseline", {"speed-up": 1.0})]
    *_, first, second = tables.found(rows).strip().splitlines()
    assert [cell.strip() for cell in second.strip("|").split("|")] == [
        "5", "5.0", "37.5 / 33.0 / 32.0", "38.2", "5.10x", "5.75",
    ]  # fmt: skip
    assert first.startswith("| 10 |")


def test_a_note_stands_below_the_tables_of_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.NOTES, PEER, "its reused steps run part of each block")
    assert f"\n\n- {PEER}: its reused steps" in tables.schedule([timed("schedule", PEER, 2.0)])
    assert "reused steps" not in tables.schedule([timed("schedule", OURS, 2.0)])


def test_a_grid_takes_lines_of_different_lengths(tmp_path: Path) -> None:
    picture = torch.zeros(3, 8, 8)
    plots.grid({"uncached": [(picture, "")] * 2, OURS: [(picture, "30.1 dB")]}, tmp_path / "grid.png", ["a", "b"])
    assert (tmp_path / "grid.png").stat().st_size


def test_a_grid_of_strips_is_lower_than_one_of_squares(tmp_path: Path) -> None:
    for name, width in (("squares", 8), ("strips", 24)):
        plots.grid({name: [(torch.zeros(3, 8, width), "")] * 2 for name in "ab"}, tmp_path / f"{name}.png")
    squares, strips = (imread(tmp_path / f"{name}.png").shape[0] for name in ("squares", "strips"))
    assert strips < 0.8 * squares


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: Sequence[Row], new: Sequence[Row]) -> int:
    for name, rows in (("old", old), ("new", new)):
        (tmp_path / name).unlink(missing_ok=True)
        store(tmp_path / name, rows)
    monkeypatch.setattr(sys, "argv", ["regress", str(tmp_path / "old"), str(tmp_path / "new")])
    return regress.main()


def test_a_planted_slowdown_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [timed("schedule", OURS, 2.0, spread=0.03), timed("schedule", PEER, 1.8, spread=0.03)]
    new = [timed("schedule", OURS, 1.85, spread=0.03, seed=1), timed("schedule", PEER, 1.8, spread=0.03, seed=1)]
    assert run(tmp_path, monkeypatch, old, new) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [OURS in line for line in lines if line.startswith("worse")] == [True]
    assert lines[-1] == "2 rows compared, 1 figures moved beyond noise, 0 rows gone; 1 for the worse"
    assert run(tmp_path, monkeypatch, new, old) == 0
    assert capsys.readouterr().out.startswith("better")


def test_noise_is_no_move() -> None:
    old, new = (
        {(row := timed("schedule", f"system {n}", 2.0, spread=0.05, seed=2 * n + odd)).key: row for n in range(40)}
        for odd in (0, 1)
    )
    assert regress.moves(old, new) == []
    assert regress.too_few(old, new) == []


def test_two_samples_are_too_few_to_judge() -> None:
    old, new = (made("sweep", OURS, "schedule", {"speed-up": s}, [s, s + 0.01]) for s in (2.0, 1.0))
    assert regress.moves({old.key: old}, {new.key: new}) == []
    assert regress.too_few({old.key: old}, {new.key: new}) == [old.key]


def test_speed_ups_on_other_numbers_of_threads_are_not_judged() -> None:
    fast, slow = timed("sweep", OURS, 2.0, spread=0.01), timed("sweep", OURS, 1.0, spread=0.01)
    one, two = ({"threads": float(threads)} for threads in (1, 2))
    old = replace(fast, figures=fast.figures | two)
    lines, worse = regress.report([old], [replace(slow, figures=slow.figures | one)])
    assert not worse
    assert any(line.startswith("speed-up not judged, on another number of threads: sweep") for line in lines)
    assert regress.report([old], [replace(slow, figures=slow.figures | two)])[1]


@pytest.mark.parametrize(
    ("figure", "before", "after", "verdict"),
    [
        ("PSNR mean", 35.0, 34.9, "worse"),
        ("PSNR worst", 30.0, 30.2, "better"),
        ("PSNR mean", 35.0, 34.97, None),
        ("graph breaks", 0, 1, "worse"),
        ("graph launches a call", 2, 1, "better"),
        ("deep steps", 10.0, 11.0, "changed"),
        ("compile s cold", 10.0, 90.0, None),
    ],
)
def test_figures_without_noise_are_judged_alone(figure: str, before: float, after: float, verdict: str | None) -> None:
    old, new = (made("costs", OURS, "own", {figure: value}) for value in (before, after))
    assert [move.verdict for move in regress.moves({old.key: old}, {new.key: new})] == [verdict] * (verdict is not None)


def test_a_tuned_setting_is_compared_with_its_familys_best_of_before() -> None:
    old = replace(drawn(PEER, "15 deep", 40, 30, 15), family="its family", label="threshold 0.1")
    new = replace(drawn(PEER, "15 deep", 30, 20, 15), family="its family", label="threshold 0.2")
    lines, worse = regress.report([old], [new])
    assert worse
    assert any("PSNR mean 40 -> 30" in line for line in lines)


def test_a_system_that_stops_running_is_worse() -> None:
    old, new = timed("schedule", OURS, 2.0), made("schedule", OURS, "schedule", {}, why="KeyError: 'x'")
    (move,) = regress.moves({old.key: old}, {new.key: new})
    assert (move.verdict, move.what) == ("worse", "no longer runs: KeyError: 'x'")


def test_other_machines_and_versions_are_said_first() -> None:
    old = [timed("schedule", OURS, 2.0), timed("schedule", PEER, 2.0)]
    new = [replace(old[0], machine="machine B", versions={"torch": "2.12.0"}), timed("schedule", "MagCache", 2.0)]
    lines, worse = regress.report(old, new[:1])
    assert lines[0] == "WARNING: times are not comparable: machine: machine A -> machine B"
    assert lines[1] == "WARNING: times are not comparable: torch 2.11.0 -> 2.12.0"
    assert f"worse   schedule, {FLUX}: {PEER}, threshold 0.1 (schedule): no longer measured" in lines
    assert worse
    lines, worse = regress.report([*old, drawn(PEER, "own", 30, 20, 10)], [*new, old[1]])  # of one part alone
    assert f"only in the old file: own, {FLUX}: {PEER}, threshold 0.1 (own)" in lines
    assert not worse
    assert f"only in the new file: schedule, {FLUX}: MagCache, threshold 0.1 (schedule)" in regress.report(old, new)[0]


def test_a_file_that_cannot_be_read_is_no_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["regress", str(tmp_path / "none"), str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        regress.main()
