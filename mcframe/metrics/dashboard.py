"""Panels of the dashboards, read from `dashboard.toml`, and TensorBoard's layout of them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcframe.metrics.catalogue import pattern

AXIS = "train/tokens"


@dataclass(frozen=True)
class Panel:
    """A chart: a title with the unit, and names or patterns of the catalogue."""

    title: str
    metrics: tuple[str, ...]

    @property
    def regex(self) -> str:
        """Regular expression for the complete name of every metric of the panel, valid in Python and JavaScript."""
        return f"^({'|'.join(pattern(name).pattern for name in self.metrics)})$"


GROUPS: dict[str, tuple[Panel, ...]] = {
    group: tuple(Panel(title, tuple(metrics)) for title, metrics in panels.items())
    for group, panels in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8")).items()
}
"""Panels by group, in their order."""


def tensorboard_layout() -> dict[str, dict[str, list[object]]]:
    """Return the argument of `SummaryWriter.add_custom_scalars`: group -> title -> kind of chart and its tags."""
    return {group: {panel.title: ["Multiline", [panel.regex]] for panel in panels} for group, panels in GROUPS.items()}


def matching(metrics: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return those of `names` that match `metrics` of the catalogue, ordered by metric, then by number."""
    names = sorted(names, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split("/")])
    return [name for metric in metrics for name in names if pattern(metric).fullmatch(name)]
