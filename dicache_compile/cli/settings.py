"""`--config field=value`: fields of DiCacheConfig, or options of Inductor, with values as Python writes them."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from .. import estimators, gates
from ..config import DiCacheConfig
from ..enable import Enabled, enable_cache
from ..options import split_options
from ..presets import parameters_of
from ..schedules import Schedule
from ..site_rule import SiteRule
from .answer import Mistake

Fields = Annotated[
    list[str],
    typer.Option(
        "--config",
        "-c",
        metavar="FIELD=VALUE",
        help="A field of DiCacheConfig, as in threshold=0.1 or 'schedule=Schedule.every(4)'. May be given often.",
    ),
]

Preset = Annotated[
    str | None,
    typer.Option(help="A published rule that the fields are changed of: 'published' is the one for the model's class."),
]

_CLASSES = (Schedule, SiteRule, *(getattr(of, name) for of in (estimators, gates) for name in of.__all__))
_FLOATS = [kind for kind in vars(torch).values() if isinstance(kind, torch.dtype) and kind.is_floating_point]
_WORDS: dict[str, Any] = {
    **{kind.__name__: kind for kind in _CLASSES},
    **{str(kind).removeprefix("torch."): kind for kind in _FLOATS},
    **{"true": True, "false": False, "none": None, "inf": math.inf},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The cache that a command is to try."""

    fields: Mapping[str, Any]  # of DiCacheConfig, and options of Inductor
    preset: str | None

    def enable(self, subject: Any, compiled: bool = True) -> Enabled:
        """Compiles the denoisers of a pipeline, or a model, in place. Raises Mistake."""
        preset: Any = self.preset
        with _told():
            return enable_cache(subject, preset=preset, compile=compiled, **self.fields)

    def inductors(self) -> dict[str, Any]:
        """The options of Inductor among the fields."""
        ours = {*(field.name for field in dataclasses.fields(DiCacheConfig)), *parameters_of(self.preset or "")}
        return {name: value for name, value in self.fields.items() if name not in ours}


def asked(given: Sequence[str], preset: str | None = None) -> Asked:
    """What `--config` and `--preset` say. Raises Mistake for what no config can have."""
    fields = dict(assigned("--config", text) for text in given)
    with _told():
        if preset is None:  # else the fields are checked with those of the preset, once it is known of which model
            split_options(fields, None)
    return Asked(fields, preset)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise Mistake(str(error)) from error


def assigned(option: str, text: str) -> tuple[str, Any]:
    """("threshold", 0.1) of "threshold=0.1". Raises Mistake."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise Mistake(f"{option} {text}: expected FIELD=VALUE, as in {option} name=1")
    return name.strip(), value_of(option, value)


def value_of(option: str, text: str) -> Any:
    """A value as Python writes it; a word that is none of ours is a text, so that it needs no quotes.

    Calls are those of the package's own classes; nothing else is run.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return text
    try:
        return _value(tree)
    except (TypeError, ValueError) as error:  # of one of these classes, or of a number too long to read
        raise Mistake(f"{option} {text}: {error}") from error


def _value(tree: ast.expr) -> Any:
    match tree:
        case ast.Name(id=word):
            return _WORDS.get(word, word)
        case ast.Tuple(elts=items):
            return tuple(map(_value, items))
        case ast.List(elts=items):
            return [*map(_value, items)]
        case ast.Attribute(value=ast.Name(id="torch"), attr=word) if isinstance(_WORDS.get(word), torch.dtype):
            return _WORDS[word]
        case ast.Call(func=function, args=args, keywords=keywords) if (maker := _maker(function)) is not None:
            return maker(*map(_value, args), **{one.arg: _value(one.value) for one in keywords if one.arg})
    try:
        return ast.literal_eval(tree)
    except ValueError:  # of other words, as "blocks.inner"
        return ast.unparse(tree)


def _maker(function: ast.expr) -> Any:
    """`SiteRule` or `Schedule.every`; None of all else."""
    if isinstance(function, ast.Name):
        found = _WORDS.get(function.id)
        return found if isinstance(found, type) else None
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        owner = _WORDS.get(function.value.id)
        return getattr(owner, function.attr, None) if owner is Schedule and function.attr[0] != "_" else None
    return None
