"""What an operator means is told by PyTorch's schemas and tags, however it is written."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional

from dicache_compile.graph import operators


def called(target: Any) -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph.call_method(target, (x, x)) if isinstance(target, str) else graph.call_function(target, (x, x))


def test_all_ways_to_write_an_operation_mean_one() -> None:
    for target in (torch.add, operator.add, operator.iadd, "add", "add_", "__radd__", torch.ops.aten.add.Tensor):
        assert operators.meaning(called(target)) == "add"
    for target, meant in (
        (torch.rand, "rand"),
        (operator.iand, "and"),
        (operator.and_, "and"),
        ("_to_copy", "_to_copy"),
    ):
        assert operators.meaning(called(target)) == meant


def test_views_are_told_by_their_schemas() -> None:
    for target in ("view", "permute", "unsqueeze_", "detach", "chunk", torch.movedim, torch.ops.aten.select.int):
        assert operators.is_view(called(target))
    for target in ("clone", "roll", "add_", "half", torch.cat):
        assert not operators.is_view(called(target))
    assert operators.takes_part(called(torch.tensor_split))
    assert not operators.takes_part(called("view"))


def test_activations_and_reads_are_told_by_their_tags() -> None:
    for function in (functional.gelu, functional.silu, functional.hardswish, functional.leaky_relu, torch.tanh):
        assert operators.is_activation(called(function))
    for function in (functional.linear, functional.layer_norm, functional.softmax, functional.dropout, torch.mul):
        assert not operators.is_activation(called(function))
    assert operators.reads_on_host(called("item"))
    assert not operators.reads_on_host(called("add"))


@pytest.mark.parametrize(
    ("target", "plain"),
    [
        (operator.iadd, operator.add), (operator.iand, operator.and_), (operator.ipow, operator.pow),
        ("addcmul_", "addcmul"), ("lerp_", "lerp"),
        ("gt_", None), ("normal_", None), ("add", None), (operator.add, None), (torch.relu_, None),
    ],
)  # fmt: skip
def test_what_is_written_in_place_has_a_form_that_is_not(target: Any, plain: Any) -> None:
    assert operators.out_of_place(called(target)) == plain
    assert operators.writes(called(target)) is (target not in ("add", operator.add))


@pytest.mark.parametrize("target", ["requires_grad_", operator.and_, operator.imatmul, "__add__", operator.is_])
def test_not_all_that_looks_like_it_is_a_write(target: Any) -> None:
    assert not operators.writes(called(target))
