"""The commands by name."""

from __future__ import annotations

from typing import Annotated

import typer

from .compare import compare
from .demo import demo
from .env import env, installed
from .explain import explain
from .models import models
from .tune import tune

app = typer.Typer(
    name="dicache",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (explain, compare, tune, models, demo, env):
    app.command()(_command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dicache-compile {installed('dicache-compile') or 'of a folder'}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 fine; 1 not cached, or worse than asked for; 2 something to put right.")
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A cache for diffusion transformers: look at a model, try a setting on it, look at this machine."""
