"""Packages of `mcframe new-plugin`: complete, importing only the public API, overwriting nothing."""

from __future__ import annotations

import ast
import json
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

from mcframe.errors import UserError
from mcframe.scaffold import origin
from mcframe.scaffold.kinds import TEMPLATES
from mcframe.scaffold.names import Names
from mcframe.scaffold.package import render, write
from mcframe.testing.kinds import BUILT_BY_KIT

ROOT = Path(__file__).parents[3]
PUBLIC = ("mcframe.hookspecs", "mcframe.context", "mcframe.errors", "mcframe.testing")
EXAMPLE = ROOT / "plugins" / "spectral"


def test_every_kind_of_the_kit_has_a_template() -> None:
    assert set(BUILT_BY_KIT) <= set(TEMPLATES)


def test_templates_are_in_the_wheel() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    for file in (ROOT / "mcframe" / "scaffold" / "templates").rglob("*"):
        if file.is_file():
            assert any(file in (ROOT / "mcframe").glob(pattern) for pattern in shipped["mcframe"]), file
            assert not file.name.startswith("."), "wheels drop hidden files"


def test_example_is_a_package_of_its_own() -> None:
    """Outside of the wheel of mcframe, with the files of a new package and the gin file that its README shows."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert not [name for name in ours if "spectral" in name]
    assert not (EXAMPLE / "__init__.py").exists(), "it would be a part of mcframe_plugins"
    written = render(Names.of("spectral", "gistnet"), "gistnet")
    assert [path for path in written if not (EXAMPLE / path).exists()] == [".github/workflows/tests.yml"]
    for path in ("tox.ini", "toxfile.py", ".gitignore"):
        assert (EXAMPLE / path).read_text("utf-8") == written[path]
    assert (EXAMPLE / "spectral.gin").read_text("utf-8") in (EXAMPLE / "README.md").read_text("utf-8")


def test_no_placeholder_remains(packages: dict[str, Path]) -> None:
    for folder in packages.values():
        for file in folder.rglob("*"):
            if file.is_file() and file.name != "tests.yml" and "__pycache__" not in file.parts:
                text = file.read_text("utf-8")
                assert "$" not in text, file
                assert text.endswith("\n"), file
                assert not text.endswith("\n\n"), file


def test_one_function_is_marked_as_the_one_to_change(packages: dict[str, Path]) -> None:
    for kind, folder in packages.items():
        (module,) = folder.glob("mcframe_*.py")
        functions = [e for e in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(e, ast.FunctionDef)]
        marked = [e.name for e in functions if "the function to change" in (ast.get_docstring(e) or "")]
        assert marked == [TEMPLATES[kind].function]
        assert f".{marked[0]} in {module.name}" in (folder / "README.md").read_text("utf-8")


def test_packages_import_only_the_public_api(packages: dict[str, Path]) -> None:
    for folder in [*packages.values(), EXAMPLE]:
        for file in [*folder.glob("*.py"), *folder.glob("tests/*.py")]:
            for each in ast.walk(ast.parse(file.read_text("utf-8"))):
                names = [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
                names += [each.module or ""] if isinstance(each, ast.ImportFrom) else []
                ours = [name for name in names if name.split(".")[0] in ("mcframe", "mcframe_plugins")]
                assert all(name.startswith(PUBLIC) for name in ours), f"{file}: {ours}"


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    taken = tmp_path / "mcframe-mine"
    taken.write_text("a file of the user's", "utf-8")
    with pytest.raises(UserError, match="nothing was written"):
        write(taken, {"one.py": ""})
    assert taken.read_text("utf-8") == "a file of the user's"
    taken.unlink()
    taken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        write(taken, {"one.py": ""})
    assert list(tmp_path.iterdir()) == [taken]


def test_error_leaves_no_incomplete_package(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="null"):
        write(tmp_path / "mcframe-mine", {"one.py": "", "bad\0name.py": ""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "supported"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3.dev1", ">=0.12,<0.13"), ("1.4.2", ">=1.4,<2"), ("unknown", "")],
)
def test_supported_versions(version: str, supported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "__version__", version)
    assert origin.versions() == supported


@pytest.mark.parametrize(
    ("recorded", "requirement"),
    [
        (
            {"url": "https://example.org/m.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "mcframe @ git+https://example.org/m.git@abc",
        ),
        ({"url": "file:///home/mcframe", "dir_info": {"editable": True}}, f"mcframe{origin.versions()}"),
        (None, f"mcframe{origin.versions()}"),
    ],
)
def test_requirement_for_other_machines(
    recorded: dict[str, object] | None, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(distribution("mcframe"))
    monkeypatch.setattr(kind, "read_text", lambda self, name: json.dumps(recorded) if recorded else None)
    assert origin.requirement() == requirement
