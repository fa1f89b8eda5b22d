"""The pages of the repository, and their parts: code, tables, headings, links, and the words of a reader."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "extend.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
READMES = [*sorted((ROOT / "bench").glob("*/README.md")), ROOT / "versus" / "README.md"]
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS, *READMES]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in this language; "" is of those that name none."""
    return [code for said, code in _BLOCK.findall(text) if said == language]


def without_blocks(text: str) -> str:
    return _BLOCK.sub("", text)


def words(text: str) -> list[str]:
    """What a reader reads as sentences: the words outside of code blocks, tables, pictures and the targets of links."""
    text = re.sub(r"<!--.*?-->", "", without_blocks(text), flags=re.DOTALL)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return [word for word in text.split() if re.search(r"\w", word)]


def tables(text: str) -> list[list[list[str]]]:
    """Each table's rows of cells, the heading first, without the line of dashes."""
    found: list[list[list[str]]] = []
    for part in re.findall(r"(?:^\|.*\n)+", without_blocks(text), re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in part.splitlines()]
        found.append([row for number, row in enumerate(rows) if number != 1])
    return found


def links(text: str) -> list[str]:
    """The targets of links and pictures that are not on another site."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))
    return [target for target in targets if "://" not in target]


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page: in lower case, without punctuation, the second of a name with "-1"."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = found.get(name, -1) + 1
        found[name] = number
        names.add(name if number == 0 else f"{name}-{number}")
    return names
