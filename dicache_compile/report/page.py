"""The page: one file of HTML that asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files

from ..plain import plain
from .data import Section
from .kept import memory, settings
from .lead import sentence, tiles
from .markup import Markup, join, table, tag
from .structure import structure
from .timeline import generation, legend


def page(sections: Sequence[Section], versions: Mapping[str, str], made: datetime) -> str:
    """The whole text of a page."""
    title = "dicache report: " + ", ".join(one.title for one in sections)
    script = Markup(_own("script.js"))
    links = [tag("a", one.title, href=f"#model-{n}") for n, one in enumerate(sections)]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(_own("style.css"))),
    )
    top = tag(
        "header",
        tag("p", "dicache report", class_="brand"),
        tag(
            "p",
            "Made on ",
            tag("time", f"{made:%Y-%m-%d %H:%M}", datetime=made.isoformat(timespec="seconds")),
            class_="quiet",
        ),
        *((tag("nav", *links, aria_label="Models"),) if len(links) > 1 else ()),
    )
    body = tag("main", *(_section(number, one) for number, one in enumerate(sections)))
    foot = tag(
        "footer",
        tag("h2", "Versions"),
        table("What it was made with", ("what", "version"), versions.items()),
        _downloads(sections, versions, made),
    )
    return (
        "<!doctype html>\n" + tag("html", head, tag("body", top, body, foot, tag("script", script)), lang="en") + "\n"
    )


def _own(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing is loaded from anywhere, and no script runs but the page's own."""
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'; img-src data:; base-uri 'none'"
    )


def _section(number: int, one: Section) -> Markup:
    name = (tag("span", f"{one.name} ", class_="quiet"),) if one.name else ()
    device = f"{one.device}: {one.device_name}"
    parts = [
        tag("h1", *name, one.kind),
        tag("p", sentence(one), class_="lead"),
        tag("p", f"On {device}.", class_="quiet"),
        tiles(one),
    ]
    if one.past:
        shown = [generation(past, one.on_host, place == 0) for place, past in enumerate(one.past)]
        parts.append(_part("What each step did", legend(), *shown))
    if one.cut is not None and one.cut.cached:
        parts.append(_part("How the model is cut", *structure(one.cut)))
        parts.append(_part("State in memory", *memory(one.memory, one.cut.state_bytes)))
    if one.config is not None:
        parts.append(_part("Config", *settings(one.config)))
    return tag("article", *parts, id=f"model-{number}")


def _part(title: str, *content: str) -> Markup:
    return tag("section", tag("h2", title), *content)


def _downloads(sections: Sequence[Section], versions: Mapping[str, str], made: datetime) -> Markup:
    """The numbers as files, which are inside of the page."""
    told = {
        "made": made.isoformat(timespec="seconds"),
        "versions": versions,
        "models": [
            {
                "name": one.name,
                "class": one.kind,
                "device": one.device_name,
                "explain": one.cut,
                "summary": one.did,
                "memory": one.memory,
            }
            for one in sections
        ],
    }
    links = [
        _download("All numbers, JSON", "dicache.json", "application/json", json.dumps(plain(told), allow_nan=False))
    ]
    for one in sections:
        if one.past:
            of = f" of {one.title}" if len(sections) > 1 else ""
            name = f"dicache-{one.name}.csv" if one.name and one.name.isidentifier() else "dicache.csv"
            links.append(_download(f"The steps{of}, CSV", name, "text/csv", one.did.to_csv()))
    return join((tag("h2", "Downloads"), tag("p", *links, class_="downloads")))


def _download(label: str, name: str, kind: str, text: str) -> Markup:
    data = base64.b64encode(text.encode()).decode()
    return tag("a", label, download=name, href=f"data:{kind};charset=utf-8;base64,{data}")
