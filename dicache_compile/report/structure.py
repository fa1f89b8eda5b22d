"""The part of a page about a model's cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..cost import Part
from ..explanation import Explanation, span
from .amounts import TIMES, counted, percent, size
from .markup import Markup, folded, table, tag
from .svg import model


def structure(cut: Explanation) -> list[Markup]:
    """The blocks drawn by their work, and what is known of them."""
    found = []
    if any(part.share for part in cut.parts):
        found += [_drawing(cut), _legend()]
    facts = [(name, text) for name, text in _facts(cut) if text]
    found.append(tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in facts), class_="facts"))
    if any(part.share for part in cut.parts):
        found.append(folded("Every part with its share", _table(cut)))
    return found


def _drawing(cut: Explanation) -> Markup:
    rows = [_row("a deep step", percent(1.0), model(cut.parts, None))]
    for place in range(len(cut.rules)):
        left = 1 - sum(part.by_rule[place] for part in cut.parts)
        name = "a reused step" if len(cut.rules) == 1 else f"rule {place + 1} reused"
        rows.append(_row(name, percent(left), model(cut.parts, place)))
    told = (
        f"Of all floating-point operations {percent(cut.skippable)} can be left out on a step. "
        "Each box is a part of the model, as wide as its operations."
    )
    return tag("figure", tag("figcaption", told), *rows, _lists(cut.parts), class_="cut")


def _row(name: str, share: str, drawing: Markup) -> Markup:
    return tag("div", tag("p", tag("span", name), tag("b", share), class_="label"), drawing, class_="bar")


def _lists(parts: Sequence[Part]) -> Markup:
    """The names under the boxes: of neighbours in one list that of the list."""
    total = sum(part.share for part in parts)
    spans: list[tuple[str, int, float]] = []
    for part in parts:
        owner = part.name.rpartition(".")[0] if part.kind == "block" else part.name
        if spans and spans[-1][0] == owner:
            spans[-1] = (owner, spans[-1][1] + 1, spans[-1][2] + part.share)
        else:
            spans.append((owner, 1, part.share))
    # What is too narrow for a letter is named in the table.
    names = [
        tag(
            "span",
            f"{owner} {TIMES} {count}" if count > 1 else owner,
            style=f"width:{100 * share / total:.5g}%",
            title=owner,
        )
        if share / total > 0.04
        else tag("span", style=f"width:{100 * share / total:.5g}%")
        for owner, count, share in spans
    ]
    return tag("div", *names, class_="lists", aria_hidden="true")


def _legend() -> Markup:
    said = (("always", "runs on every step"), ("site", "runs on deep steps"), ("stood-in", "an estimate stands in"))
    return tag("ul", *(tag("li", tag("i", class_=f"key {kind}"), text) for kind, text in said), class_="legend")


def _facts(cut: Explanation) -> Iterable[tuple[str, str]]:
    yield "trunk", ", ".join(cut.trunk)
    if len(cut.rules) == 1:
        yield "probe", span(cut.probe)
        yield "deep", cut.rules[0].skips
    else:
        for number, rule in enumerate(cut.rules, start=1):
            yield f"rule {number}", f"probe {span(rule.probe)}; deep {rule.skips}"
    yield "beside", f"{span(cut.beside)}, on every step" if cut.beside else ""
    yield "streams", ", ".join(f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in cut.streams)
    yield "timestep", cut.timestep or "not an input of this graph"
    for stack in cut.uncut:
        yield "uncut", f"{stack.owner}, {percent(stack.share)} of the operations, runs on every step"
    yield "state", f"{size(cut.state_bytes)} a stream"
    reason = f" ({cut.engine_reason})" if cut.engine_reason else ""
    yield "engine", f"{cut.engine}{reason}" if cut.engine else ""
    several = "several graphs" if cut.graphs is None else counted(cut.graphs, "graph")
    yield "graphs", "one full graph" if cut.graphs == 1 else several


def _table(cut: Explanation) -> Markup:
    heads = [
        "part",
        "operations",
        *(["left out"] if len(cut.rules) == 1 else [f"rule {n + 1}" for n in range(len(cut.rules))]),
    ]
    rows = [(part.name, f"{part.share:.2%}", *(f"{share:.2%}" for share in part.by_rule)) for part in cut.parts]
    return table("Shares of all operations", heads, rows, numbers=range(1, len(heads)))
