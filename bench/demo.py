"""Samples coloured shapes with and without the cache: `python -m bench.demo` prints a table and draws demo.png."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="generations of each system; 5 show every prompt once")
    parser.add_argument("--picture", type=Path, default=Path("demo.png"))
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON document in place of the table")
    arguments = parser.parse_args()
    sampling().demonstrate(arguments.rounds, arguments.picture, arguments.json)


def sampling() -> ModuleType:
    """The module that does it, imported without torchao.

    Nothing here is quantised. Diffusers, peft and transformers import torchao wherever they find it, and it prints
    warnings of its own then: of libraries for GPUs that it cannot load, and of what it registers with PyTorch.
    """
    sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]  # the documented way to make an import fail
    from . import sampling

    return sampling


if __name__ == "__main__":
    main()
