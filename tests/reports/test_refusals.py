"""A refusal says what was found, where in the model that is, and what can be done about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, Schedule, errors
from dicache_compile.cut import cut
from dicache_compile.errors import UnsupportedGraphError
from dicache_compile.estimators import Reuse
from tests.helpers.graphs import Mixer, Tiny, captured, tiny_inputs
from tests.repository.test_layers import GRAPH_AND_PASSES

LINE = re.compile(r": `\w+` \(\w+\.py:\d+: .+\); ")  # what a refusal says of a node, before its advice


def of_blocks(change: Callable[[Tensor], Tensor], which: slice = slice(None)) -> Tiny:
    """A model some of whose blocks also do something else."""

    class Changed(Mixer):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return change(super().forward(x, time))

    model = Tiny(3)
    for place in range(3)[which]:
        model.blocks[place] = Changed()
    return model


class CountingBlock(Mixer):
    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = super().forward(x, time)
        return x, (x @ x.mT).argmax(-1)


class Counting(Tiny):
    """What it gives depends on whole numbers that its last block counts."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = hidden_states.relu()
        for block in self.blocks:
            x, counted = block(x, timestep)
        return x.tanh() + counted[..., None]


def counting() -> Tiny:
    model = Counting()
    model.blocks = nn.ModuleList(CountingBlock() for _ in range(3))
    return model


class Timeless(Tiny):
    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states, torch.ones(()))


class Writing(Mixer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen.add_(x.mean())
        return super().forward(x, time) * self.seen


def writing() -> Tiny:
    model = Tiny(3)
    model.blocks[2] = Writing()
    return model


def in_computed_order(x: Tensor) -> Tensor:
    return x.gather(1, x.mean(-1, keepdim=True).argsort(1).expand_as(x))


SUBLAYERS = {"sites": "mlp", "schedule": Schedule.every(4), "estimator": Reuse()}
REFUSED: list[tuple[str, nn.Module, dict[str, Any], str]] = [
    ("NoTrunkError", nn.Linear(4, 4), {}, "name the list of its blocks with trunk="),
    ("NoTrunkError", Tiny(), {"trunk": "layers"}, "found: 'blocks' (3 blocks); set trunk= to one of these"),
    ("NothingToSkipError", Tiny(1), {}, "name all lists of them with trunk="),
    ("NothingToSkipError", Tiny(), {"probe_depth": 3}, "(3 blocks found); set a smaller probe_depth"),
    ("NothingToSkipError", Tiny(), {"sites": (0, 9)}, "give ranges in order of at least 2 blocks"),
    ("NothingToSkipError", Tiny(), SUBLAYERS, "set sites= to another part"),
    ("NotCarriedError", counting(), {}, "compute it before the blocks, or after them from what they carry"),
    ("NoCounterpartError", of_blocks(lambda x: x @ torch.ones(4, 5), slice(2, 3)), {}, "sites=(first, last) or trunk="),
    ("TokenOrderError", of_blocks(in_computed_order), {}, "leave out only blocks that keep the order"),
    ("EffectError", of_blocks(lambda x: nn.functional.dropout(x, 0.5)), {}, "call model.eval() if it is dropout"),
    ("EffectError", writing(), {}, "have the model make a new tensor there"),
    ("TimestepError", Tiny(), {"timestep_input": "time"}, "set timestep_input= to one of these"),
    ("TimestepError", Timeless(), {}, "name it with timestep_input=, or, for a model that has none"),
]  # fmt: skip
WITHOUT_A_NODE = {"NoTrunkError", "NothingToSkipError", "TimestepError"}


def refusal(model: nn.Module, config: dict[str, Any]) -> UnsupportedGraphError:
    inputs = tiny_inputs() if isinstance(model, Tiny) and not isinstance(model, Timeless) else tiny_inputs()[:1]
    gm, examples = captured(model.requires_grad_(False), *inputs)
    with torch.no_grad(), pytest.raises(UnsupportedGraphError) as caught:
        cut(gm, examples, DiCacheConfig(**config))
    return caught.value


@pytest.mark.parametrize(("kind", "model", "config", "advice"), REFUSED)
def test_a_refusal_says_where_and_what_to_do(kind: str, model: nn.Module, config: dict[str, Any], advice: str) -> None:
    refused = refusal(model, config)
    assert type(refused).__name__ == kind
    assert advice in str(refused)
    assert refused.reason.endswith(refused.advice)
    if kind == "TokenOrderError":  # its sentence begins with the node
        assert re.search(r"`\w+` \(test_refusals\.py:\d+: return x\.gather", refused.reason)
    elif kind not in WITHOUT_A_NODE:
        assert LINE.search(refused.reason)


@pytest.mark.parametrize("change", [lambda x: x @ torch.ones(4, 5), in_computed_order])
def test_blocks_before_one_that_changes_form_or_order_can_be_left_out_as_advised(change: Any) -> None:
    gm, examples = captured(of_blocks(change, slice(2, 3)), *tiny_inputs())
    assert cut(gm, examples, DiCacheConfig(sites=(0, 2))).partition.carried


def test_a_value_that_cannot_cross_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicache_compile.passes.partition.not_passable", lambda crossing: crossing[0])
    refused = refusal(Tiny(), {})
    assert isinstance(refused, errors.CrossingError)
    assert LINE.search(refused.reason)
    assert "make a tensor of it" in refused.reason


def test_every_refusal_of_the_passes_is_of_a_kind_with_advice() -> None:
    kinds = {kind.__name__ for path in GRAPH_AND_PASSES for kind in made_in(path.read_text())}
    assert kinds == {
        "NoTrunkError", "NothingToSkipError", "NotCarriedError", "NoCounterpartError", "TokenOrderError", "EffectError",
        "CrossingError", "CollectiveError", "TimestepError", "MixedTokensError", "RowsError",
    }  # fmt: skip
    assert all(getattr(errors, kind).advice for kind in kinds)


def made_in(text: str) -> list[type[UnsupportedGraphError]]:
    """The refusals that a file makes."""
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    named = (getattr(errors, call.id, None) for call in calls if isinstance(call, ast.Name))
    return [kind for kind in named if isinstance(kind, type) and issubclass(kind, UnsupportedGraphError)]
