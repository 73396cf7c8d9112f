"""Pages of the documentation that are made of the code: one per registered name, and the API.

`mkdocs build` asks for them (docs/hooks.py); `python -m search.docs DIRECTORY` writes them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.explain import Explanation, as_markdown, explain_all

KINDS = {
    "edge operator": "Edge operators: how an edge computes",
    "edge rule": "Edge rules: which edges live",
    "node rule": "Node rules: which nodes stay",
    "space": "Spaces: what a search may build",
    "algorithm": "Algorithms: what a search tries next",
}
API = """# Python

What `import wiring` offers. Each name is imported when it is first used.
"""


def pages() -> dict[str, str]:
    """Markdown by path inside docs/: `methods/NAME.md`, an index of them, and `api.md`."""
    by_name: dict[str, list[Explanation]] = {}
    for found in explain_all():
        by_name.setdefault(found.name, []).append(found)
    made = {
        f"methods/{name}.md": "\n".join(as_markdown(one) for one in several)
        for name, several in by_name.items()
    }
    every = [found for several in by_name.values() for found in several]
    return {"methods/index.md": index(every), "api.md": api(), **made}


def index(found: Sequence[Explanation]) -> str:
    """A table of every kind, with links."""
    lines = ["# Methods", "", "`wiring explain NAME` shows the same pages in a terminal."]
    for kind, heading in KINDS.items():
        rows = sorted((one for one in found if one.kind == kind), key=lambda one: one.name)
        lines += ["", f"## {heading}", "", "| name | what it is | paper |", "|---|---|---|"]
        lines += [
            f"| [{one.name}]({one.name}.md) | {_cell(one.summary)} | {_cell(one.paper)} |"
            for one in rows
        ]
    return "\n".join([*lines, ""])


def navigation() -> list[dict[str, Any]]:
    """The methods by kind, as mkdocs takes a navigation. A name of two kinds stands under the
    first: its page has both."""
    seen: set[str] = set()
    entries: dict[str, list[dict[str, str]]] = {}
    for one in explain_all():
        if one.name not in seen:
            seen.add(one.name)
            page = {one.name: f"methods/{one.name}.md"}
            entries.setdefault(KINDS[one.kind].partition(":")[0], []).append(page)
    return [{"All methods": "methods/index.md"}, *({k: v} for k, v in entries.items())]


def api() -> str:
    """A block for mkdocstrings for every public name, at home where it is defined."""
    import wiring

    blocks = [f"::: {home}.{name}" for name, home in sorted(wiring._HOMES.items())]
    return "\n\n".join([API.rstrip(), *blocks, ""])


def write(directory: Path) -> list[Path]:
    """Write all pages below a directory."""
    written = []
    for name, text in pages().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path)
    return written


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m search.docs DIRECTORY")
    print(f"{len(write(Path(sys.argv[1])))} pages")
