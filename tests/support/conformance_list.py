"""Write the list of docs/conformance.md from the requirements: `python tests/support/conformance_list.py`."""

from __future__ import annotations

import inspect
import re
from itertools import groupby
from pathlib import Path

from mcframe.testing import all_requirements

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
_BETWEEN = re.compile(r"(<!-- requirements -->\n).*?(<!-- end of requirements -->)", re.S)
HEADINGS = {
    "P": "Every plug-in",
    "M": "Kinds that a training step calls",
    "B": "Base models",
    "G": "GistNets",
    "L": "LensNets",
    "N": "GistNets and LensNets as modules",
    "A": "Allocators",
    "V": "Variant strategies",
    "Q": "Positions",
    "O": "Losses",
    "D": "Text sources",
    "K": "Tokenizers",
    "T": "Tasks",
    "E": "Evaluations",
    "S": "Metric loggers",
    "C": "Callbacks",
    "U": "Optimizers",
    "H": "Schedules",
    "R": "Training runs (slow)",
}


def requirements() -> str:
    """Return Markdown: a heading for each letter, an item for each requirement."""
    order = sorted(all_requirements().values(), key=lambda each: (list(HEADINGS).index(each.id[0]), each.id))
    text = []
    for letter, group in groupby(order, key=lambda each: each.id[0]):
        text += [f"### {letter}: {HEADINGS[letter]}", ""]
        for each in group:
            condition = f" If {each.needs.declared}." if each.needs else ""
            detail = " ".join(inspect.cleandoc(each.check.__doc__ or "").split()) + condition
            text.append(f"- **{each.id}** {each.title}. *{detail}*")
        text.append("")
    return "\n".join(text)


def with_requirements(page: str) -> str:
    """Return the page with the current list."""
    text, count = _BETWEEN.subn(lambda found: found[1] + requirements() + found[2], page)
    assert count == 1, "docs/conformance.md: expected one pair of marks"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_requirements(PAGE.read_text("utf-8")), "utf-8")
