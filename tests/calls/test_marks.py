"""Models are told apart by a mark on a weight, which gets in nobody's way."""

from __future__ import annotations

import copy
import gc
import io
import math
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dicache_compile import summary
from dicache_compile.calls.marks import mark_of, marks_of
from dicache_compile.calls.session import sessions_of
from dicache_compile.errors import UncachedWarning
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.models import SingleStream

pytestmark = pytest.mark.shares_traces
REUSING: dict[str, Any] = {"threshold": math.inf, "max_consecutive_skips": None, "warmup_steps": 1}


def half(call: Any, model: models.Model, first: int) -> None:
    """Half a generation, beginning with this step."""
    with torch.no_grad():
        for step in range(first, first + STEPS // 2):
            call(*models.inputs(model, step, STEPS))


@pytest.mark.parametrize("depth", [4, 1], ids=["cached", "refused"])
def test_no_weight_has_a_weak_reference_after_a_call(depth: int) -> None:
    model = models.make(SingleStream, depth=depth)
    call = torch.compile(model, backend="dicache", options={"lowering": "eager"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncachedWarning)
        generate(call, model)
    gc.collect()  # Dynamo's own
    assert not any(weakref.getweakrefs(weight) for weight in model.parameters())
    for name, weight in list(model.named_parameters()):
        torch.utils.swap_tensors(weight, nn.Parameter(weight.detach().clone(), requires_grad=False))
        assert weight is model.get_parameter(name)


def test_a_quantised_model_moves_after_its_first_call_and_goes_on() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = models.make(SingleStream, torch.bfloat16, width=32)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    before = generate(model, model)
    call = compiled(model, **REUSING)
    half(call, model, 0)
    model.to("cpu")
    (session,) = sessions_of(model)
    half(call, model, STEPS // 2)
    assert sessions_of(model) == [session]
    assert [step.deep for step in summary(model).generations[-1].streams["0"]] == [True] + [False] * (STEPS - 1)
    assert all(torch.equal(a, b) for a, b in zip(generate(compiled(model, threshold=0.0), model), before, strict=True))


def test_weights_that_are_exchanged_loaded_or_changed_in_place_keep_the_session() -> None:
    model = models.make(SingleStream)
    call = compiled(model, apart=True, **REUSING)
    half(call, model, 0)
    (session,) = sessions_of(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.data = weight.data.clone()  # offloading
            weight.add_(0.01 * torch.ones_like(weight))  # a fused LoRA
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch._dynamo.config.patch(error_on_recompile=True):
        half(call, model, STEPS // 2)
    assert sessions_of(model) == [session]
    assert len(summary(model).generations) == 1


def test_a_session_dies_with_its_model_while_the_graph_lives_on() -> None:
    model, other = models.make(SingleStream), models.make(SingleStream, seed=1)
    call = compiled(model)
    half(call, model, 0)
    half(compiled(other), other, 0)
    gone = weakref.ref(sessions_of(model)[-1])
    del model, call
    gc.collect()
    assert gone() is None
    assert sessions_of(other)


def test_a_copy_of_a_model_is_a_model_of_its_own() -> None:
    model = models.make(SingleStream)
    generate(compiled(model, **REUSING), model)
    twins = [copy.deepcopy(model), copy.copy(model)]
    twins[1]._parameters = {}
    twins[1].blocks = nn.ModuleList(copy.deepcopy(block) for block in model.blocks)
    for twin in twins:
        assert not sessions_of(twin)
    for weight in map(copy.copy, model.parameters()):
        assert not marks_of([weight])


def test_a_weight_is_saved_and_loaded_as_ever(tmp_path: Path) -> None:
    model = models.make(SingleStream)
    generate(compiled(model), model)
    found = [name for name, weight in model.named_parameters() if marks_of([weight])]
    assert sorted(name.split(".")[1] for name in found) == [str(block) for block in range(1, len(model.blocks))]
    marked = found[0]
    torch.save({"weight": model.get_parameter(marked), "state": model.state_dict()}, tmp_path / "file")
    loaded = torch.load(tmp_path / "file", weights_only=True)
    assert torch.equal(loaded["weight"], model.get_parameter(marked))
    assert not marks_of([loaded["weight"]])
    assert mark_of(loaded["weight"]) in marks_of([loaded["weight"]])
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    again = torch.load(whole, weights_only=False)
    assert isinstance(vars(again.get_parameter(marked))["_dicache_mark"], OrderedDict)
    call = compiled(again, **REUSING)
    generate(call, again)
    assert len(sessions_of(again)) == len(sessions_of(model)) == 1
