"""Whatever draws random numbers is known by what PyTorch says of its operators, not by a list of names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet, Gamma, Normal
from torch.nn import functional

from dicache_compile.errors import UnsupportedGraphError
from dicache_compile.graph import operators
from dicache_compile.graph.randomness import is_random
from tests.helpers.graphs import Mixer, Tiny, captured, tiny_inputs
from tests.passes.test_passes import cut_of


def attended(x: Tensor, **options: float) -> Tensor:
    width = x.shape[-1]
    weight = torch.ones(3 * width, width)
    mixed, _ = functional.multi_head_attention_forward(
        x, x, x, width, 2, weight, None, None, None, False, out_proj_weight=torch.ones(width, width),
        out_proj_bias=None, **options,
    )  # fmt: skip
    return mixed


def pooled(x: Tensor) -> Tensor:
    return x + functional.fractional_max_pool2d(x[:, None], 2, output_size=2).mean()


Draw = Callable[[Tensor], Tensor]
DRAWING: dict[str, Draw] = {
    "attention": lambda x: attended(x, dropout_p=0.5, training=True),
    "scaled attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "dropout": lambda x: functional.dropout(x, 0.5, True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "feature_alpha_dropout": lambda x: functional.feature_alpha_dropout(x, 0.5, True),
    "dropout_": lambda x: torch.dropout_(x.clone(), 0.5, True),
    "alpha_dropout_": lambda x: torch.alpha_dropout_(x.clone(), 0.5, True),
    "rrelu_": lambda x: torch.rrelu_(x.clone(), 0.1, 0.3, True),
    "gumbel_softmax": functional.gumbel_softmax,
    "binomial": lambda x: torch.binomial(x.exp(), torch.full_like(x, 0.5)),
    "_standard_gamma": lambda x: torch._standard_gamma(x.exp()),
    "_sample_dirichlet": lambda x: torch._sample_dirichlet(x.exp()),
    "Gamma": lambda x: Gamma(x.exp(), x.exp(), validate_args=False).sample(),
    "Beta": lambda x: Beta(x.exp(), x.exp(), validate_args=False).sample(),
    "Dirichlet": lambda x: Dirichlet(x.exp(), validate_args=False).sample(),
    "Normal": lambda x: Normal(x, x.exp(), validate_args=False).sample(),
    "fractional_max_pool2d": pooled,
    "randn": lambda x: x + torch.randn(x.shape),
    "uniform_": lambda x: x.clone().uniform_(),
    "aten": lambda x: torch.ops.aten.bernoulli.p(x, 0.5),
    "a condition": lambda x: torch.cond(x.sum() > 0, lambda: torch.rand_like(x), lambda: x.clone()),
}
QUIET: dict[str, Draw] = {
    "attention": lambda x: attended(x, dropout_p=0.5, training=False),
    "attention without dropout": lambda x: attended(x, dropout_p=0.0, training=True),
    "scaled attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    "dropout": lambda x: functional.dropout(x, 0.5, False),
    "dropout of nothing": lambda x: functional.dropout(x, 0.0, True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, False)[0],
    "feature_alpha_dropout": lambda x: functional.feature_alpha_dropout(x, 0.5, False),
    "rrelu": lambda x: functional.rrelu(x, 0.1, 0.3, False),
    "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
    "aten": lambda x: torch.ops.aten.dropout.default(x, 0.0, True),
    "a condition": lambda x: torch.cond(x.sum() > 0, lambda: x.sin(), lambda: x.clone()),
}


class Doing(Mixer):
    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x, time) + self.draw(x)


def doing(draw: Draw) -> nn.Module:
    model = Tiny(2)
    model.blocks[1] = Doing(draw)
    return model


@pytest.mark.parametrize("name", DRAWING)
def test_deep_blocks_that_draw_random_numbers_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=r"draws random numbers: `\w+` \("):
        cut_of(doing(DRAWING[name]), *tiny_inputs())


@pytest.mark.parametrize("name", QUIET)
def test_deep_blocks_that_might_but_do_not_are_cut(name: str) -> None:
    assert cut_of(doing(QUIET[name]), *tiny_inputs()).partition.carried


def test_looking_for_random_numbers_adds_no_guards() -> None:
    with torch._dynamo.config.patch(assume_static_by_default=False):
        gm, _ = captured(doing(QUIET["layer_norm"]), torch.randn(2, 6, 4), torch.ones(()))
    symbol = next(n for n in gm.graph.nodes if isinstance(n.meta.get("example_value"), torch.SymInt))
    guards = symbol.meta["example_value"].node.shape_env.guards
    before = len(guards)
    assert not any(map(is_random, gm.graph.nodes))
    assert len(guards) == before


def test_looking_for_randomness_switches_nothing_in_the_process() -> None:
    class Scopes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = torch.vmap(lambda row: torch.matmul(row, row))(x)
            with torch.enable_grad():
                return x * 2

    graph, _ = captured(Scopes(), torch.ones(2, 3, 3))
    names = [operators.name(node) for node in graph.graph.nodes]
    assert {"_enter_autocast", "_exit_autocast", "_vmap_increment_nesting", "_set_grad_enabled"} <= set(names)
    with torch.no_grad():
        assert not any(is_random(node) for node in graph.graph.nodes)
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
        assert torch._C._functorch.maybe_current_level() is None
