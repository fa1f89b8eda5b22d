"""What `bench.gpu` checks and measures by the engines' own objects, on the stand-in for CUDA."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the checks run a FLUX of diffusers")

from bench.gpu import check_equality, systems
from bench.gpu.cases import Run, build, case_named
from bench.gpu.device import Cpu
from bench.gpu.host import host_parts
from bench.gpu.kit import MIXED, STEPS, Kit
from bench.gpu.measure import generate
from bench.gpu.quiet import FILE, building, timing
from dicache_compile.engines.recording import Recording


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Kit:
    monkeypatch.setitem(MIXED, "lowering", "eager")  # the stand-in records operations of PyTorch
    return Kit(Cpu())


@pytest.mark.exhaustive
def test_an_engine_is_compared_with_calls_on_the_same_pieces(kit: Kit) -> None:
    for engine in ("conditional", "graphs"):
        passed, detail = check_equality.both_branches(kit, engine)
        assert passed, detail
    passed, detail = check_equality.weights_changed(kit, "conditional", "in place")
    assert passed, detail


@pytest.mark.exhaustive
def test_an_engine_that_errs_is_found_out(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Recording.run

    def wrong(self: Recording, inputs: Any) -> list[Any]:
        outputs = right(self, inputs)
        return [output * (1 + 2**-20) for output in outputs] if self.runs == 5 else outputs

    monkeypatch.setattr(Recording, "run", wrong)
    passed, detail = check_equality.both_branches(kit, "conditional")
    assert not passed
    assert detail.startswith(f"1 of {2 * STEPS} steps differ; the first is 4")


def test_the_parts_of_the_host_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    options = systems.our_options
    monkeypatch.setattr(systems, "our_options", lambda *given: {**options(*given), "lowering": "eager"})
    device, case = Cpu(), case_named("flux512", tiny=True)
    system, run = systems.ours("conditional", build(case, device)), Run(case, device)
    generate(system, run, device)
    parts = host_parts(system, run, device)
    assert list(parts) == ["before the step", "addresses", "launch", "copies"]
    assert all(value > 0 for kinds in parts.values() for value in (kinds["deep"], kinds["reused"]))
    generate(system, run, device)  # and nothing is timed any more
    assert host_parts(system, run, device).keys() == parts.keys()


def test_what_is_timed_waits_for_what_is_built(tmp_path: Path) -> None:
    def free(how: int) -> bool:
        with (tmp_path / FILE).open("a") as file:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    with building(tmp_path):
        assert free(fcntl.LOCK_SH)
        assert not free(fcntl.LOCK_EX)
    with timing(tmp_path):
        assert not free(fcntl.LOCK_SH)
    assert free(fcntl.LOCK_EX)
