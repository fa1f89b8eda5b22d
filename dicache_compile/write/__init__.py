"""Writes the program of a step: its pieces, and the single graph that equals them."""

from .single import single_graph
from .writer import write_program

__all__ = ["single_graph", "write_program"]
