"""Turns a piece's graph into something to call."""

from .lower import Lowering, lower_graph

__all__ = ["Lowering", "lower_graph"]
