"""How a command answers: text for people or one JSON document, an exit code, and no traceback for what users do."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from ..plain import plain

NO, MISTAKE, OURS = 1, 2, 3  # exit codes
_INTERRUPTED = 130  # as shells have it
_WIDE = 160  # columns where the output is no terminal, so that tables are not cut

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Mistake(Exception):  # noqa: N818 - it is the user's
    """What the user can put right; the text says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found."""

    data: Any  # what `plain` can take
    shown: RenderableType
    good: bool = True  # whether it is what was hoped for


def tell(work: Callable[[], Answer], as_json: bool, debug: bool) -> None:
    """Runs a command, prints its answer and exits. What the user's code prints meanwhile goes to stderr."""
    try:
        with redirect_stdout(sys.stderr), _short_warnings(debug):
            answer = work()
    except Mistake as mistake:
        raise typer.Exit(_failed(str(mistake), MISTAKE, debug)) from mistake
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(_failed("interrupted", _INTERRUPTED, debug)) from interrupt
    except Exception as error:  # a fault of ours
        told = f"internal error, {type(error).__name__}: {first_line(error)}; --debug shows where"
        raise typer.Exit(_failed(told, OURS, debug)) from error
    if as_json:
        print(json.dumps(plain(answer.data), indent=2, allow_nan=False))
    else:
        _console(sys.stdout).print(answer.shown)
    if not answer.good:
        raise typer.Exit(NO)


@contextmanager
def users(what: str) -> Iterator[None]:
    """Inside, an error is the user's: `what` names what raised it."""
    try:
        yield
    except Mistake:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        raise Mistake(f"{what} raised {type(error).__name__}: {first_line(error)}{where}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, other libraries log nothing but errors: of what they could not load, say, when they are imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "without a message")


def errors() -> Console:
    """The console of stderr: of messages and progress bars."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    return Console(file=file, width=None if file.isatty() else _WIDE, soft_wrap=False, highlight=False, markup=False)


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc(file=sys.stderr)
    errors().print(Text.assemble(("dicache: ", "bold red"), message), soft_wrap=True)
    return code


@contextmanager
def _short_warnings(debug: bool) -> Iterator[None]:
    """Inside, a warning is one line without the place in our own code that it comes from."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        errors().print(Text.assemble((f"{category.__name__}: ", "yellow"), str(message)), soft_wrap=True)

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show
        yield
