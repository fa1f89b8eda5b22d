"""Turns a piece's graph into something to call."""

from .fake_values import forget_originals
from .lower import Lowering, lower_graph

__all__ = ["Lowering", "forget_originals", "lower_graph"]
