"""Installation of a package without an installer."""

from __future__ import annotations

import tomllib
from pathlib import Path


def link(package: Path, site: Path) -> None:
    """Write to `site` what `pip install -e` writes for a package: metadata, and a path to it."""
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    facts = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(facts, "utf-8")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (site / f"{project['name']}.pth").write_text(f"{package}\n", "utf-8")
