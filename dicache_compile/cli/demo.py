"""`dicache demo`: the demo of the repository, which has a small trained model."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .answer import MISTAKE, errors

_NEEDS = {"diffusers": "diffusers", "safetensors": "safetensors", "skimage": "scikit-image", "matplotlib": "matplotlib",
          "tqdm": "tqdm"}  # fmt: skip


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="Generations of each system.")] = 5,
    picture: Annotated[Path, typer.Option(help="Where the picture is written.")] = Path("demo.png"),
    json: Annotated[bool, typer.Option("--json", help="Print the rows of the table as one JSON document.")] = False,
) -> None:
    """Sample a small trained FLUX with and without the cache: a table, and a picture.

    Its trained model is a part of the repository, not of the wheel: runs in a checkout.
    """
    root = checkout()
    if root is None:
        say = "dicache: the demo's trained model is in the repository, not in the package: call it in a checkout"
        errors().print(say, soft_wrap=True)
        raise typer.Exit(MISTAKE)
    missing = [package for module, package in _NEEDS.items() if find_spec(module) is None]
    if missing:
        errors().print(f"dicache: the demo needs more: pip install {' '.join(missing)}", soft_wrap=True)
        raise typer.Exit(MISTAKE)
    command = [sys.executable, "-m", "bench.demo", "--rounds", str(rounds), "--picture", str(picture.resolve())]
    raise typer.Exit(subprocess.run(command + (["--json"] if json else []), cwd=root, check=False).returncode)


def checkout() -> Path | None:
    """The repository: that of this package, or the working directory."""
    return next((root for root in (Path(__file__).parents[2], Path.cwd()) if (root / "bench/demo.py").is_file()), None)
