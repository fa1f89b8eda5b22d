"""`dicache compare`: the same sampling plain and cached."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from dicache_compile.cli.answer import Mistake
from dicache_compile.cli.quality import psnr, result, span_of, ssim
from dicache_compile.cli.rounds import CACHED, PLAIN, both
from dicache_compile.cli.settings import asked
from tests.use import workloads
from tests.use.test_cli import HERE, dicache

SEEDS = ("--eager", "--seeds", "0,3")
FORGETFUL = "sampling_that_forgets_its_seed"


def compare(*args: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dicache("compare", *args, *SEEDS, "--json", code=code).stdout)
    return found


def test_a_cache_that_reuses_nothing_gives_the_same_results() -> None:
    found = compare(f"{HERE}:sampling", "-c", "threshold=0")
    assert [one["seed"] for one in found["rounds"]] == [0, 3]
    for one in found["rounds"]:
        assert (one["deep"], one["steps"], one["psnr"], one["ssim"]) == (8, 8, "inf", 1.0)
        assert one["plain_seconds"] > 0
        assert one["cached_seconds"] > 0
    assert found["again_psnr"] == "inf"
    assert (found["cached"], found["missed"], found["total"]["psnr_worst"]) == (True, [], "inf")


def test_steps_that_are_reused_are_counted_and_told_in_what_they_cost() -> None:
    fields = ("threshold=inf", "warmup_steps=2", "max_consecutive_skips=none", "gamma_range=(0, inf)")
    given = [word for field in fields for word in ("--config", field)]
    found = compare(f"{HERE}:sampling", *given, "--steps", "12")
    assert [(one["deep"], one["steps"]) for one in found["rounds"]] == [(2, 12), (2, 12)]
    quality = [(one["psnr"], one["ssim"]) for one in found["rounds"]]
    assert all(0 < psnr < math.inf and 0 < ssim < 1 for psnr, ssim in quality)
    assert found["total"]["psnr_worst"] == min(psnr for psnr, _ in quality)
    assert found["total"]["ssim_mean"] == pytest.approx(sum(ssim for _, ssim in quality) / 2)


def test_compare_samples_with_a_pipeline() -> None:
    pytest.importorskip("diffusers", reason="the pipeline is diffusers'")
    found = compare(f"{HERE}:pipeline", "--steps", "5", "-c", "threshold=0")
    # Guidance calls it twice a step: two streams of five steps each.
    assert [(one["deep"], one["steps"], one["psnr"]) for one in found["rounds"]] == [(5, 5, "inf")] * 2


def test_compare_exits_with_one_where_a_bar_is_missed() -> None:
    given = (f"{HERE}:sampling", "-c", "threshold=inf")
    found = compare(*given, "--min-psnr", "1000", "--min-speed-up", "1e6", code=1)
    assert [one.split()[0] for one in found["missed"]] == ["speed-up", "PSNR"]
    assert "is below 1000.0 dB" in dicache("compare", *given, *SEEDS, "--min-psnr", "1000", code=1).stdout
    assert compare(*given, "--min-psnr", "0", "--min-speed-up", "0")["missed"] == []


def test_compare_exits_with_one_where_nothing_is_cached() -> None:
    found = compare(f"{HERE}:sampling_not_cached", code=1)
    assert not found["cached"]
    assert "nothing to skip" in found["reason"]


def test_compare_says_where_a_seed_does_not_give_the_same_twice() -> None:
    given = (*SEEDS, "-c", "threshold=0")
    assert "Two plain runs of one seed differ, too" in dicache("compare", f"{HERE}:{FORGETFUL}", *given).stdout
    assert "differ, too" not in dicache("compare", f"{HERE}:sampling", *given).stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["call"], "gives one call of a model, and compare samples"),
        (["sampling_of_another_size_each_time"], "has to give results of one shape"),
        (["sampling_without_steps", "--steps", "3"], "write it as generate(seed, steps=30)"),
        (["sampling", "--seeds", "a"], "--seeds a: expected whole numbers"),
        (["sampling", "--seeds", "4-2"], "there is none in it"),
    ],
)
def test_a_users_mistake_is_told(args: list[str], words: str) -> None:
    done = dicache("compare", f"{HERE}:{args[0]}", *args[1:], *(() if "--seeds" in args else SEEDS), code=2)
    assert words in done.stderr
    assert done.stdout == ""


def test_compare_is_not_for_classes_which_have_nothing_to_sample_with() -> None:
    assert "module:factory" in dicache("compare", "FluxTransformer2DModel", code=2).stderr


def test_afterwards_a_model_is_called_as_it_was_before() -> None:
    model, _ = workloads.sampling()
    marker = model._compiled_call_impl = lambda *args: model.forward(*args)
    with both(model, asked([]), compiled=True) as each:
        calls = []
        for which in (PLAIN, CACHED):
            each.use(which)
            calls.append(model._compiled_call_impl)
        assert None not in calls
        assert len({*map(id, calls), id(marker)}) == 3
    assert model._compiled_call_impl is marker
    with both(model, asked([]), compiled=False) as each:
        each.use(PLAIN)
        assert model._compiled_call_impl is None


def test_psnr_counts_over_the_range_that_the_form_has() -> None:
    rng = np.random.default_rng(0)
    bytes_, unit = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), torch.rand(3, 8, 8)
    assert span_of(result(bytes_)) == 255
    assert span_of(result(unit)) == 1
    assert span_of(result(2 * unit - 1)) == 2
    assert span_of(result(torch.tensor([-3.0, 5.0]))) == 8
    # An error of a tenth of the range everywhere is 20 dB, whatever the range.
    for scale in (1.0, 255.0):
        one, other = result(unit * scale), result((unit + 0.1) * scale)
        assert psnr(other, one, scale) == pytest.approx(20, abs=1e-3)
    assert psnr(result(unit), result(unit), 1.0) == math.inf


def test_pictures_of_every_form_are_compared_alike() -> None:
    first, second = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)

    def near(form: Any) -> float | None:
        return ssim(result(form(first)), result(form(second)), 1.0)

    expected = near(lambda pictures: pictures)
    assert expected is not None
    assert near(lambda pictures: [*pictures]) == pytest.approx(expected)
    assert near(lambda pictures: pictures.permute(0, 2, 3, 1).numpy()) == pytest.approx(expected)
    assert near(lambda pictures: [one.permute(1, 2, 0).numpy() for one in pictures]) == pytest.approx(expected)
    assert near(lambda pictures: pictures[None]) == pytest.approx(expected)  # a clip of two frames


def test_what_is_no_picture_has_no_ssim() -> None:
    tokens, tiny = torch.rand(2, 64, 16), torch.rand(1, 3, 4, 4)
    assert ssim(result(tokens), result(tokens), 1.0) is None
    assert ssim(result(tiny), result(tiny), 1.0) is None
    with pytest.raises(Mistake, match="gave a NoneType: expected a tensor, an array or pictures"):
        result(None)
