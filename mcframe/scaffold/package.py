"""Rendering of the templates of a kind, and writing of the package."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from mcframe.errors import UserError
from mcframe.hookspecs import API_VERSION
from mcframe.scaffold.kinds import TEMPLATES
from mcframe.scaffold.names import Names
from mcframe.scaffold.origin import requirement, versions
from mcframe.testing.kinds import class_suffix, noun, suite_name

_FOLDER = files("mcframe.scaffold") / "templates"

_FILES = {
    "README.md": "package/README.md.tmpl",
    "LICENSE": "package/LICENSE.tmpl",
    "pyproject.toml": "package/pyproject.toml.tmpl",
    "$module.py": "kinds/$kind.py.tmpl",
    "$name.gin": "package/choose.gin.tmpl",
    "tests/test_conformance.py": "package/conformance.py.tmpl",
    "tests/test_$module.py": "kinds/$kind.test.tmpl",
    "tox.ini": "package/tox.ini.tmpl",
    "toxfile.py": "package/toxfile.py.tmpl",
    ".gitignore": "package/gitignore.tmpl",
    ".github/workflows/tests.yml": "package/workflow.yml.tmpl",
}
"""The template of each file of a package. No template is hidden, because wheels drop hidden files."""


def render(names: Names, kind: str) -> dict[str, str]:
    """Return the text of every file by its path in the package."""
    values = _placeholders(names, kind)

    def fill(template: str) -> str:
        path = Template(template).substitute(values)
        return Template(_FOLDER.joinpath(path).read_text("utf-8")).substitute(values)

    values["choice"] = fill("kinds/$kind.gin.tmpl").rstrip()
    values["gin"] = fill("package/choose.gin.tmpl")
    return {Template(path).substitute(values): fill(template) for path, template in _FILES.items()}


def write(folder: Path, content: Mapping[str, str]) -> None:
    """Create `folder` with these files, all of them or none.

    Raises:
        UserError: The folder exists.
    """
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"{folder} exists; nothing was written",
            remedy="choose another name or another --dir, or remove it",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written to a temporary folder and then moved, so that an error leaves no incomplete package.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-plugin-") as partial:
        for path, text in content.items():
            file = Path(partial, folder.name, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        shutil.move(Path(partial, folder.name), folder)


def what_to_change(names: Names, kind: str) -> str:
    """Return a sentence for the author: the function to change and its purpose."""
    template = TEMPLATES[kind]
    return f"{names.camel}{class_suffix(kind)}.{template.function} in {names.module}.py {template.change}."


def _placeholders(names: Names, kind: str) -> dict[str, str]:
    """Return the values of the placeholders of the templates."""
    what = noun(kind)
    return {
        "kind": kind,
        "name": names.name,
        "entry": names.entry_point,
        "package": names.package,
        "module": names.module,
        "cls": names.camel + class_suffix(kind),
        "noun": what,
        "suite": suite_name(kind),
        "description": f"{what[0].upper()}{what[1:]} for mcframe: {TEMPLATES[kind].does}.",
        "change": what_to_change(names, kind),
        "api": API_VERSION,
        "versions": versions(),
        "source": requirement(),
        "year": str(datetime.date.today().year),
    }
