"""The passes one after the other: what each gives is sound, and none changes what it was given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dicache_compile import explain
from dicache_compile.errors import EffectError, NoTrunkError, UnsupportedGraphError
from dicache_compile.passes.pipeline import PASSES, Passed, check_plan, run_passes
from dicache_compile.passes.printing import plan_text
from dicache_compile.plan import Plan
from tests import models
from tests.helpers.graphs import Mixer, Tiny, captured, tiny_inputs


@pytest.mark.parametrize("kind", models.ALL)
def test_each_pass_gives_a_sound_plan_and_leaves_the_one_before_as_it_was(kind: type[models.Model]) -> None:
    model = models.make(kind)
    gm, _ = captured(model, *models.inputs(model, 0, 9))
    texts: list[tuple[Plan, str]] = [(Plan(gm), plan_text(Plan(gm)))]

    def watch(passed: Passed) -> None:
        check_plan(passed.after)
        texts.append((passed.after, plan_text(passed.after)))

    with torch.no_grad():
        run_passes(texts[0][0], watch)
    assert len(texts) == len(PASSES) + 1
    assert all(plan_text(plan) == text for plan, text in texts)


class Noisy(Mixer):
    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.rand_like(x), time)


def test_an_error_names_its_pass_the_operation_its_line_and_what_to_do() -> None:
    model = Tiny(3)
    model.blocks[2] = Noisy()
    gm, _ = captured(model, *tiny_inputs())
    with torch.no_grad(), pytest.raises(EffectError) as caught:
        run_passes(Plan(gm))
    assert str(caught.value).startswith(
        "cut_trunk: the deep region draws random numbers: `rand_like` (test_pipeline.py:"
    )
    assert "torch.rand_like(x)" in caught.value.reason
    with torch.no_grad(), pytest.raises(NoTrunkError) as none:
        run_passes(Plan(captured(nn.Linear(4, 4), torch.ones(2, 4))[0]))
    assert isinstance(none.value, UnsupportedGraphError)
    assert none.value.stage == "cut_trunk"


def test_explain_tells_what_each_pass_did() -> None:
    model = models.make(models.Mixed)
    found = explain(model, *models.inputs(model, 0, 9), passes=True)
    assert [one.name for one in found.passes] == [one.__name__ for one in PASSES]
    assert "4 blocks of double_blocks, single_blocks" in found.passes[2].did
    assert "deep 100" in next(one for one in found.passes if one.name == "sink").did
    assert "    sink " in str(found)
    assert "deep double_blocks.1" in found.passes[-1].graph
    refused = explain(nn.Linear(4, 4), torch.ones(2, 4), passes=True)
    assert [one.name for one in refused.passes] == ["inline", "out_of_place"]  # those before the one that refused
    with pytest.raises(ValueError, match="give its arguments, too"):
        explain(model, passes=True)
