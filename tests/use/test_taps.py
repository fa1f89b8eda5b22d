"""A cut graph in pieces that are called by hand: each runs what it needs, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dicache_compile import DiCacheConfig
from dicache_compile.calibration.taps import taps
from dicache_compile.cut import cut
from dicache_compile.graph import operators
from tests import models

DEPTH = 4


class Written(nn.Module):
    """An attention that writes its queries in place, half and half, as rotary embeddings of Wan are written."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.empty_like(x)
        turned[..., 0::2] = x[..., 1::2]
        turned[..., 1::2] = -x[..., 0::2]
        return self.attention(turned)


def test_what_is_above_and_below_a_cut_runs_without_the_blocks_that_write_in_place() -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    for block in model.blocks:
        block.attention = Written(block.attention)
    inputs = models.inputs(model, 0, 8)
    attentions: list[int] = []

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Any:
        found = taps(cut(graph, examples, DiCacheConfig()))
        for piece in (found.whole, found.above, found.below):
            called = [operators.name(node) for node in piece.graph.nodes]  # type: ignore[attr-defined]
            attentions.append(called.count("scaled_dot_product_attention"))

        def run(*given: Any) -> Any:
            outputs, x, h, y = found.whole(*given)
            assert all(torch.equal(a, b) for a, b in zip(found.above(*given), (x, h), strict=True))
            assert torch.equal(found.below(*given, y)[0], outputs[0])
            return outputs

        return run

    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend=backend, fullgraph=True)(*inputs), model(*inputs))
    assert attentions == [DEPTH, 1, 0]  # above is the probe
