"""The command `dicache`: how a model is cut, what the cache gains, what this machine can have."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDS = ("typer", "rich")  # of the extra `cli`


def main() -> None:
    """Runs the command. Where its libraries are missing it says in one line what to install, and exits with 2."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        need = f"dicache needs {' and '.join(missing)}: pip install 'dicache-compile[cli]'"
        print(need, file=sys.stderr)
        raise SystemExit(2)
    from .app import app

    app(prog_name="dicache")
