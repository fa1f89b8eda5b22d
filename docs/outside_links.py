"""For mkdocs: links to files of the repository that are not pages of the site become their paths."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]*)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[text](../path)` as `path`, or as the text where that is the path already."""
    return _OUTSIDE.sub(lambda match: match[1] if match[2] in match[1] else f"{match[1]} (`{match[2]}`)", markdown)
