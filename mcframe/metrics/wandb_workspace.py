"""The dashboard as a Python file that makes a workspace on wandb, with wandb's own library for that."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from mcframe.metrics.dashboard import AXIS, GROUPS, Panel, matching

PICTURES = ("pictures/contexts", "pictures/lens", "pictures/gist_cost", "working_contexts")
"""Images and texts of a run, in the order in which they are shown."""

HISTOGRAMS = ("mc/lens_score/{lod}", "mc/variant_delta", "mc/entry_delta/{lod}")
"""Distributions of a run."""

_SCRIPT = '''"""{title} on wandb. Written by `mcframe dashboard wandb`; change it, and run it again.

    pip install wandb wandb-workspaces
    wandb login
    python {file} ENTITY/PROJECT

makes a saved view "{name}" of the project, whose panels show whichever of its runs are selected.
"""

import sys

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

AXIS = {axis}

# Section -> panels: a title, and metrics by name or as a regular expression.
SECTIONS = {sections}

HISTOGRAMS = {histograms}

MEDIA = {media}


def lines(title, metrics):
    chosen = {{"metric_regex": metrics}} if isinstance(metrics, str) else {{"y": metrics}}
    return wr.LinePlot(title=title, x=AXIS, **chosen)


def workspace(entity, project):
    sections = [
        ws.Section(name=name, panels=[lines(title, metrics) for title, metrics in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]
    sections.append(ws.Section(name="Distributions", panels=[lines(name, [name]) for name in HISTOGRAMS], is_open=True))
    media = [wr.MediaBrowser(title=name, media_keys=[name], num_columns=1) for name in MEDIA]
    sections.append(ws.Section(name="Pictures", panels=media, is_open=True))
    return ws.Workspace(
        entity=entity,
        project=project,
        name="{name}",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=AXIS),
        auto_generate_panels=False,
    )


if __name__ == "__main__":
    entity, _, project = (sys.argv[1] if len(sys.argv) == 2 else "").partition("/")
    if not project:
        sys.exit(f"usage: python {{sys.argv[0]}} ENTITY/PROJECT")
    print(workspace(entity, project).save().url)
'''


def workspace_script(file: str, names: Sequence[str] | None = None, title: str = "mcframe's dashboard") -> str:
    """A Python program that makes the workspace.

    file   what it will be called; title: what its first line says
    names  the metrics and distributions of a run: panels then name what there is of them, and those without any are
           left out; None: all panels, patterns as regular expressions
    """
    sections = {group: [_panel(panel, names) for panel in panels] for group, panels in GROUPS.items()}
    sections = {group: [panel for panel in panels if panel[1]] for group, panels in sections.items()}
    histograms = [each.format(lod=lod) for each in HISTOGRAMS for lod in ((0, 1) if "{" in each else (0,))]
    if names is not None:
        histograms = [name for each in HISTOGRAMS for name in matching([each], names)]
    return _SCRIPT.format(
        title=_escaped(title), file=_escaped(shlex.quote(file)), name="mcframe",
        axis=_literal(AXIS), media=_literal(list(PICTURES)),
        sections=_literal({group: panels for group, panels in sections.items() if panels}),
        histograms=_literal(histograms),
    )  # fmt: skip


def _panel(panel: Panel, names: Sequence[str] | None) -> tuple[str, str | list[str]]:
    if names is not None:
        return panel.title, matching(panel.metrics, names)
    return panel.title, list(panel.metrics) if panel.named else panel.regex


def _escaped(text: str) -> str:
    """As part of a string in double quotes: a folder may have any name."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _literal(value: object, indent: str = "") -> str:
    """The value as a person would write it: dictionaries and long lists one item a line, double quotes."""
    inner = indent + "    "
    if isinstance(value, dict):
        rows = [f"{inner}{_literal(key)}: {_literal(item, inner)},\n" for key, item in value.items()]
        return "{\n" + "".join(rows) + indent + "}"
    if isinstance(value, list | tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        flat = opening + ", ".join(_literal(item) for item in value) + closing
        if len(flat) + len(indent) <= 100 and not any(isinstance(item, tuple) for item in value):
            return flat
        return opening + "\n" + "".join(f"{inner}{_literal(item, inner)},\n" for item in value) + indent + closing
    return json.dumps(value, ensure_ascii=False)
