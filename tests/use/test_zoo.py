"""Every model of the zoo: the right trunk, exact deep steps, reused steps as the hook oracle has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import zoo
from dicache_compile import configure, explain, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.errors import UncachedWarning
from tests.helpers.published import published
from tests.helpers.traced import Traced
from tests.helpers.unnamed import APART, form_agrees
from tests.oracles.hook_oracle import HookOracle
from zoo.entry import STEPS, Entry

ENTRIES = zoo.entries()
CACHED = [entry for entry in ENTRIES.values() if entry.refused is None]
# Their trunks have the form of another entry's: as many lists, carried in the same places, refused for the same reason.
# `make test-all` has them, too.
SIBLINGS = {
    "consisid", "flux_controlnet", "helios", "ltx2", "motif_video_decoder", "rfd4_proteina", "wan_vace",
    "ace_step", "allegro", "anyflow", "anyflow_far", "bria", "bria_fibo", "bria_fibo2", "chroma", "chrono_edit",
    "cogview3plus", "cogview4", "cosmos", "dream_lite", "easyanimate", "flux3", "hidream_image", "hunyuan_1_5",
    "hunyuan_image", "hunyuan_video_framepack", "joyimage_edit", "joyimage_edit_plus", "kandinsky5", "kandinsky6",
    "kandinsky6_sr", "longcat_audio", "longcat_image", "lumina_next", "mochi", "motif_video", "omnigen", "ovis_image",
    "prior", "prx", "qwenimage21", "sana_video", "sana_wm", "sana_wm_refiner", "sd3_controlnet", "skyreels_v2",
    "stable_audio", "stable_audio3", "transformer_2d", "transformer_2d_vq", "wan22", "wan_animate", "wild_pixart",
    "wild_sit", "wild_wan_style", "wild_wan_style_tensor",
}  # fmt: skip
EXACT: dict[str, Any] = {"threshold": 0.0}
REUSING: dict[str, Any] = {"threshold": float("inf"), "warmup_steps": 2, "max_consecutive_skips": 1}
DEEP = (True, True, False, True, False, True, False, True)  # what REUSING does


def case(entry: Entry) -> Any:
    return pytest.param(entry, id=entry.name, marks=[pytest.mark.exhaustive] if entry.name in SIBLINGS else [])


def traced(model: nn.Module, entry: Entry) -> Traced:
    config = published(**{**entry.config, **REUSING}, lowering="eager")
    return Traced(model, {"reusing": config}, fullgraph=entry.fullgraph, dynamic=False)


@torch.no_grad()
def run(call: Callable[..., Any], entry: Entry) -> list[list[Tensor]]:
    """The tensors that each step of a generation gives."""
    return [tensors(call(**entry.at_step(step, STEPS))) for step in range(STEPS)]


def tensors(result: Any) -> list[Tensor]:
    return [leaf.clone() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("entry", [case(entry) for entry in CACHED])
def test_a_model_is_cut_where_its_source_says_and_its_steps_are_those_of_the_oracle(entry: Entry) -> None:
    model = entry.build()
    expected = run(model, entry)
    with torch._dynamo.config.patch(**entry.dynamo):
        compiled = traced(model, entry)
        reusing = run(compiled.under("reusing"), entry)
        steps = next(iter(summary(model).generations[-1].streams.values()))
        configure(model, **EXACT)
        exact = run(compiled.under("reusing"), entry)
    for ours, theirs in zip(exact, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    found = explain(model)
    assert found.trunk == entry.trunk or not entry.trunk
    assert tuple(step.deep for step in steps) == DEEP
    oracle = HookOracle(model, entry) if entry.streams else None
    for index, (deep, ours) in enumerate(zip(DEEP, reusing, strict=True)):
        assert all(tensor.isfinite().all() for tensor in ours if tensor.is_floating_point())
        theirs = expected[index] if oracle is None else tensors(oracle(entry.at_step(index, STEPS), deep))
        if deep:
            assert all(torch.equal(a, b) for a, b in zip(ours, expected[index], strict=True))
        elif oracle is not None:
            assert not all(torch.equal(a, b) for a, b in zip(theirs, expected[index], strict=True))
            for a, b in zip(ours, theirs, strict=True):
                # The estimate differs by the order of a sum over the stream, the epilogue amplifies it a little.
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
        if oracle is not None and index > 0:
            assert steps[index].error == pytest.approx(oracle.error, rel=1e-5)
    assert oracle is None or sorted(stream.shape for stream in found.streams) == sorted(oracle.shapes)

    if entry.trunk:
        largest = max(compiled.graphs, key=lambda gm: len(gm.graph.nodes))
        assert form_agrees(largest) is (entry.name not in APART)


@pytest.mark.parametrize("entry", [case(entry) for entry in ENTRIES.values() if entry.refused is not None])
def test_what_is_refused_runs_uncached_with_a_true_reason(entry: Entry) -> None:
    model = entry.build()
    expected = run(model, entry)
    with torch.no_grad():
        found = explain(model, **entry.call())
    assert not found.cached
    assert entry.refused is not None
    assert entry.refused in (found.reason or "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncachedWarning)
        ours = run(traced(model, entry).under("reusing"), entry)
    assert not sessions_of(model)
    for a, b in zip(ours, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
