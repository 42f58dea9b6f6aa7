"""docs/plugins.md: its package works as written, and it describes every hook and interface as they are."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer

from mcframe import hookspecs
from mcframe.cli.app import app
from mcframe.cli.train import arguments
from mcframe.context.seeding import variant_seeds
from mcframe.hookspecs import RunInfo
from mcframe.plugin_rules import API_ATTRIBUTE, api_fits
from mcframe.recipe import load_recipe
from mcframe.training.assembly import build_model

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
MODULE = "mcframe_last_child"
INTERFACES = [interface.__name__ for interface in hookspecs.INTERFACES.values()]


def block(language: str) -> str:
    """The page's first code block in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    assert found, f"no {language} block"
    return found[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package on `sys.path`, with the metadata that an installer makes of its pyproject.toml."""
    project = tomllib.loads(block("toml"))["project"]
    (tmp_path / f"{MODULE}.py").write_text(block("python"), "utf-8")
    metadata = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    facts = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(facts, "utf-8")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop(MODULE, None)


@pytest.mark.usefixtures("installed")
def test_the_package_trains_a_step_and_its_hook_is_called(tmp_path: Path) -> None:
    gin = tmp_path / "mine.gin"
    gin.write_text(block("gin"), "utf-8")
    loaded = load_recipe([gin], [])
    recipe, geometry = loaded.recipe, loaded.recipe.context.geometry
    assert loaded.registry.broken == []
    model = build_model(recipe, recipe.tokenizer().vocab_size)
    assert type(model.gistnet).__name__ == "LastChild"
    assert model.gistnet.head.bias is not None

    torch.manual_seed(0)
    tokens = torch.randint(0, 257, (2, geometry.window + 1))
    seeds = variant_seeds(0, torch.arange(2), model.strategy.count)
    loss, statistics = model(tokens, seeds, recipe.variant_length(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert "mc/gist_entry_delta/2" in statistics.means
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.gistnet.parameters())

    run = RunInfo(directory=tmp_path, rank=0, world_size=1, tokens=1024, step=1, total_tokens=1024)
    loaded.registry.hooks.run_finished(run, {"status": "finished"})
    assert (tmp_path / "last_child.txt").read_text() == "finished after 1024 tokens\n"


def test_every_hook_has_a_heading_with_its_exact_signature() -> None:
    hooks = {name: function for name, function in vars(hookspecs.Hooks).items() if not name.startswith("_")}
    signatures = [
        f"{name}({', '.join(p for p in inspect.signature(function).parameters if p != 'self')})"
        for name, function in hooks.items()
    ]
    assert re.findall(r"^### `(.+)`$", PAGE, re.M) == signatures


@pytest.mark.parametrize("name", INTERFACES)
def test_every_interface_has_a_section_with_the_signatures_of_its_methods(name: str) -> None:
    interface = getattr(hookspecs, name)
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", PAGE, re.M | re.S)
    assert section, f"docs/plugins.md has no section {name}"
    for method in interface.__abstractmethods__:
        function = inspect.getattr_static(interface, method)
        function = function.fget if isinstance(function, property) else function
        signature = str(inspect.signature(function)).replace("'", "")
        assert f"def {method}{signature}: ..." in section[1]
    for attribute in inspect.get_annotations(interface):
        assert f"`{attribute}`" in section[1]


@pytest.mark.parametrize("name", INTERFACES)
def test_every_interface_is_described_in_the_code_with_the_shapes_of_its_tensors(name: str) -> None:
    """In the docstrings, where an editor shows them: what the class is, how its factory is called, every shape."""
    interface = getattr(hookspecs, name)
    assert re.search(r"Factory: `factory\((shape|geometry|run)?\)`", interface.__doc__), "say how the factory is called"
    for method in interface.__abstractmethods__:
        function = inspect.getattr_static(interface, method)
        function = function.fget if isinstance(function, property) else function
        told = inspect.getdoc(function) or ""
        assert told, f"{name}.{method} has no docstring"
        for parameter in inspect.signature(function).parameters.values():
            if parameter.annotation in ("Tensor", "Tensor | None"):
                singular = parameter.name.removesuffix("s")
                assert re.search(rf"\b{singular}s? \[", told), f"{name}.{method} gives no shape of {parameter.name}"
        if inspect.signature(function).return_annotation == "Tensor":
            assert re.search(r"(-> [^\[]*|int64 )\[", told), f"{name}.{method} gives no shape of what it returns"


def test_every_hook_says_what_it_is_for_and_when_it_is_called() -> None:
    for name, function in vars(hookspecs.Hooks).items():
        if name.startswith("_"):
            continue
        told = inspect.getdoc(function) or ""
        assert told, f"{name} has no docstring"
        section = re.search(rf"^### `{name}\(.*\)`\n\n(.+)", PAGE, re.M)
        assert section, f"docs/plugins.md says nothing below {name}"
        if not name.startswith("register_"):
            assert re.search(r"every rank|rank 0", told, re.I), f"{name}: say on which ranks it is called"
            assert re.search(rf"^### `{name}\(.*\)`\n\n[^#]*(every rank|rank 0)", PAGE, re.M | re.I)


def test_hooks_are_named_by_the_rule_of_the_page() -> None:
    for name in (name for name in vars(hookspecs.Hooks) if not name.startswith("_")):
        assert re.fullmatch(r"register_[a-z_]+s|([a-z]+_)?[a-z]+ed", name), name


def test_errors_that_plugins_meet_are_told_on_the_page() -> None:
    for interface in ("TextSource", "Task"):
        section = re.search(rf"^### {interface}\n(.*?)(?=^##)", PAGE, re.M | re.S)
        assert section
        assert "Raise `UserError`" in section[1]
    (errors,) = re.findall(r"^## Errors\n(.*?)(?=^## )", PAGE, re.M | re.S)
    for words in ("import", "register", "a name that is taken", "wrong type", "UserError", "`forward`"):
        assert words in errors


def test_the_options_of_the_page_are_those_of_every_command_that_reads_plugins() -> None:
    known = {option for action in arguments()._actions for option in action.option_strings}
    table = set(re.findall(r"^\| `(--[\w-]+)", PAGE, re.M))
    assert table == {"--plugin", "--no-plugin", "--strict-plugins"}
    assert table <= known
    (line,) = re.findall(r"^(`run`, .*) take$", PAGE, re.M)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    taking = {name for name, command in commands.items() if table <= {o for p in command.params for o in p.opts}}
    assert set(re.findall(r"`(\w+)`", line)) == taking | {"run"}  # which passes on what it does not know


def test_the_versions_on_the_page_are_those_of_the_code() -> None:
    assert f'{API_ATTRIBUTE} = "{hookspecs.API_VERSION}"' in PAGE
    assert api_fits(hookspecs.API_VERSION)
    assert int(hookspecs.API_VERSION.split(".")[0]) == 0, "from 1.0 the page's table is a promise: test that it is kept"
