"""A model compiled ahead of time with its cache, in one file, and what runs it; a model with its cache as one graph."""

from .graph import export_graph
from .loading import Package, load_package, package_of
from .saving import save_package

__all__ = ["Package", "export_graph", "load_package", "package_of", "save_package"]
