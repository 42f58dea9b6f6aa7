"""The list of docs/conformance.md, made from the registered clauses. Run this file to write it into the page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from mcframe.testing import Requirement, every_clause
from mcframe.testing.capabilities import CAPABILITIES

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
_BETWEEN = re.compile(r"(<!-- clauses -->\n).*?(<!-- end of clauses -->)", re.S)
HEADINGS = {
    "P": "Every plug-in",
    "M": "The four kinds that a model is made of",
    "G": "GistNets",
    "L": "LensNets",
    "A": "Allocators",
    "V": "Variant strategies",
    "N": "GistNets and LensNets as modules",
    "Q": "Positions",
    "O": "Losses",
    "D": "Text sources",
    "K": "Tokenizers",
    "T": "Tasks",
    "E": "Evaluations",
    "S": "Loggers",
    "C": "Callbacks",
    "R": "Training runs",
}


def clauses() -> str:
    """Markdown: a heading for each letter, an item for each clause."""
    by_letter = sorted(every_clause().values(), key=lambda each: list(HEADINGS).index(each.id[0]))
    text = []
    for letter, group in groupby(by_letter, key=lambda each: each.id[0]):
        text += [f"### {letter}: {HEADINGS[letter]}", "", *_items(group), ""]
    return "\n".join(text)


def _items(group: Iterator[Requirement]) -> Iterator[str]:
    for each in sorted(group, key=lambda clause: int(clause.id[1:])):
        notes = [f"Where {CAPABILITIES[each.needs].declared}."] if each.needs else []
        notes += ["Slow."] if each.slow else []
        detail = " ".join([inspect.cleandoc(each.check.__doc__ or "").replace("\n", " "), *notes])
        yield f"- **{each.id}** {each.title}. *{detail}*"


def with_clauses(page: str) -> str:
    """The page with the list in its place."""
    text, places = _BETWEEN.subn(lambda found: found[1] + clauses() + found[2], page)
    assert places == 1, "docs/conformance.md needs one pair of marks"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_clauses(PAGE.read_text("utf-8")), "utf-8")
