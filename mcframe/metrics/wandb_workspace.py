"""Dashboard for wandb: a Python program that makes a workspace with wandb's own library."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from pprint import pformat
from string import Template

from mcframe.metrics.dashboard import AXIS, GROUPS, Panel, matching

PICTURES = ("pictures/contexts", "pictures/lens", "pictures/gist_cost", "working_contexts")
"""Images and texts of a run, in their order on the page."""

HISTOGRAMS = ("mc/lens_score/{lod}", "mc/variant_delta", "mc/entry_delta/{lod}")
"""Histograms of a run."""


def workspace_script(file: str, names: Sequence[str] | None = None, title: str = "mcframe's dashboard") -> str:
    """Return a Python program that makes the workspace.

    Args:
        file: name under which the program will be saved, for its usage text.
        names: metrics and histograms of a run, to which the panels are limited; None for all panels, with patterns as
            regular expressions.
        title: first words of the program's docstring.
    """
    sections = {group: [_panel(panel, names) for panel in panels] for group, panels in GROUPS.items()}
    sections = {group: [panel for panel in panels if panel[1]] for group, panels in sections.items()}
    if names is None:
        histograms = list(dict.fromkeys(each.format(lod=lod) for each in HISTOGRAMS for lod in (0, 1)))
    else:
        histograms = matching(HISTOGRAMS, names)
    return Template(Path(__file__).with_suffix(".py.tmpl").read_text("utf-8")).substitute(
        title=_escaped(title),
        file=_escaped(shlex.quote(file)),
        axis=repr(AXIS),
        sections=_literal({group: panels for group, panels in sections.items() if panels}),
        histograms=_literal(histograms),
        media=_literal(list(PICTURES)),
    )


def _panel(panel: Panel, names: Sequence[str] | None) -> tuple[str, str | list[str]]:
    if names is not None:
        return panel.title, matching(panel.metrics, names)
    return panel.title, panel.regex if any("{" in name for name in panel.metrics) else list(panel.metrics)


def _literal(value: object) -> str:
    return pformat(value, width=110, sort_dicts=False)


def _escaped(text: str) -> str:
    """Return the text as part of a string literal in double quotes: a folder may have any name."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
