"""HTML and SVG as text, in which nothing that is not markup can become it."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence

_EMPTY = ("meta", "link", "br", "path", "rect", "line")  # elements without content


class Markup(str):
    """Text that is markup already. Any other text is escaped where it is put into an element."""

    __slots__ = ()


def tag(element: str, /, *content: str, **attributes: object) -> Markup:
    """An element. `class_` is the attribute `class`, other "_" are "-"; True is one without a value, None is none."""
    said = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if element in _EMPTY:
        return Markup(f"<{element}{said}/>")
    return Markup(f"<{element}{said}>{join(content)}</{element}>")


def join(content: Iterable[str]) -> Markup:
    """Texts and markup one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in content))


def table(caption: str, heads: Sequence[str], rows: Iterable[Iterable[str]], numbers: Collection[int] = ()) -> Markup:
    """A table that scrolls by itself where it is too wide; `numbers`: the places of columns of numbers."""

    def cell(element: str, place: int, text: str, scope: str | None = None) -> Markup:
        return tag(element, text, scope=scope, class_="n" if place in numbers else None)

    head = [cell("th", place, text, "col") for place, text in enumerate(heads)]
    body = [
        tag("tr", *(cell("td", n, text) if n else cell("th", n, text, "row") for n, text in enumerate(row)))
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def folded(title: str, *content: str, **attributes: object) -> Markup:
    """What is shown when its title is clicked."""
    return tag("details", tag("summary", title), *content, **attributes)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
