"""Writes docs/fields.md: every field of the config, from the docstrings of its classes.

python -m bench.fields
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

from dicache_compile import DiCacheConfig, SiteRule
from dicache_compile.fields import RUN_TIME

PAGE = Path(__file__).parents[1] / "docs" / "fields.md"
_HEAD = """# All fields

<!-- Written by `python -m bench.fields` from the docstrings of DiCacheConfig and SiteRule. -->

Each is a field of `DiCacheConfig`, an argument of `enable_cache`, and an option of `torch.compile`. In the texts x is
the value that enters the trunk, h what leaves the probe, y what leaves the trunk. An anchor is what a deep step leaves
behind for later estimates.

Fields with a star can be changed at run time, by `configure` or for one run by `generation`. Nothing is compiled for
it.
"""
_STAR = "\\*"
_GROUPS = (
    (SiteRule, "When a step is reused, and what stands in", "They are also the fields of `SiteRule`."),
    (DiCacheConfig, "The whole model", "These are of the config alone."),
)


def page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for kind, title, text in _GROUPS:
        described = descriptions(kind)
        rows = [
            f"| `{field.name}`{_STAR if field.name in RUN_TIME else ''} | `{_shown(field.default)}` "
            f"| {described[field.name]} |"
            for field in dataclasses.fields(kind)
            if field.name in described
        ]
        parts.append(
            "\n".join((f"## {title}\n", f"{text}\n", "| field | default | meaning |", "|---|---|---|", *rows, ""))
        )
    return "\n".join(parts)


def descriptions(kind: type) -> dict[str, str]:
    """The docstring of each field that a class itself defines, in one line."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _shown(default: object) -> str:
    return f'"{default}"' if isinstance(default, str) else str(default)


if __name__ == "__main__":
    PAGE.write_text(page())
