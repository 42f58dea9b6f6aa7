"""docs/plugins: the package of its first page works as written; hooks and interfaces are described as they are."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mcframe import hookspecs
from mcframe.cli.app import all_commands
from mcframe.cli.run_options import arguments
from mcframe.config.run_config import all_plugins, load_run_config
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import random_keys, variant_seeds
from mcframe.hookspecs import BaseShape, HeadShape, ModelShape, RunInfo, RunStart
from mcframe.modeling.rope import GaussianRope
from mcframe.registry.checks import check_product
from mcframe.registry.hook_rules import API_ATTRIBUTE, api_fits
from mcframe.training.build import build_step
from mcframe.training.train_step import StepBatch

FOLDER = Path(__file__).parents[3] / "docs" / "plugins"
PAGE, HOOKS, ERRORS = ((FOLDER / name).read_text("utf-8") for name in ("README.md", "hooks.md", "errors.md"))
MODULE = "mcframe_last_child"


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
    loaded = load_run_config([gin], [])
    run_config, tree = loaded.run_config, loaded.run_config.context.tree
    assert loaded.registry.broken == []
    step = build_step(run_config, run_config.tokenizer().vocab_size)
    model = step.model
    assert type(model.gistnet).__name__ == "LastChild"
    assert model.gistnet.head.bias is not None

    torch.manual_seed(0)
    tokens = torch.randint(0, 257, (2, tree.window + 1))
    seeds = variant_seeds(0, torch.arange(2), model.strategy.count)
    loss, metrics = step(StepBatch(tokens, seeds, run_config.variant_length(0)))
    loss.backward()
    assert torch.isfinite(loss)
    assert "mc/gist_entry_delta/2" in metrics.means
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
    assert re.findall(r"^## `(.+)`$", HOOKS, re.M) == signatures


def page_of(kind: str) -> str:
    return (FOLDER / f"{kind}.md").read_text("utf-8")


@pytest.mark.parametrize(("kind", "interface"), hookspecs.INTERFACES.items())
def test_every_kind_has_a_page_with_the_signatures_of_its_interface(kind: str, interface: type) -> None:
    assert f"({kind}.md)" in PAGE, "the first page names every kind"
    page = page_of(kind)
    assert f"`mcframe.hookspecs.{interface.__name__}`" in page
    for method in interface.__abstractmethods__:
        function = inspect.getattr_static(interface, method)
        function = function.fget if isinstance(function, property) else function
        signature = str(inspect.signature(function)).replace("'", "")
        assert f"def {method}{signature}: ..." in page
    for attribute in inspect.get_annotations(interface):
        assert f"`{attribute}`" in page


@pytest.mark.parametrize("interface", hookspecs.INTERFACES.values())
def test_every_interface_is_described_in_the_code_with_the_shapes_of_its_tensors(interface: type) -> None:
    """In the docstrings: the factory, an example, every shape."""
    text = inspect.getdoc(interface) or ""
    assert re.search(r"Factory: `factory\((shape|tree|run)?\)`", text), "missing the call of the factory"
    assert re.search(rf"^    class \w+\({interface.__name__}\):", text, re.M), "missing an example"
    for method in interface.__abstractmethods__:
        function = inspect.getattr_static(interface, method)
        function = function.fget if isinstance(function, property) else function
        text = inspect.getdoc(function) or ""
        assert text, f"{interface.__name__}.{method} has no docstring"
        for parameter in inspect.signature(function).parameters.values():
            if parameter.annotation in ("Tensor", "Tensor | None"):
                singular = parameter.name.removesuffix("s")
                assert re.search(rf"\b{singular}s? \[", text), f"{method} has no shape of {parameter.name}"
        if inspect.signature(function).return_annotation == "Tensor":
            assert re.search(r"(-> [^\[]*|int64 )\[", text), f"{method} has no shape of the returned value"


@pytest.mark.parametrize(("kind", "interface"), hookspecs.INTERFACES.items())
def test_the_example_of_every_interface_is_valid(kind: str, interface: type) -> None:
    """Compiled unchanged, built as the framework builds it, and checked against the interface."""
    text = inspect.getdoc(interface) or ""
    found = re.search(r"^    class (\w+)\(.*?(?=^\S|\Z)", text, re.M | re.S)
    assert found
    scope = {name: getattr(hookspecs, name) for name in hookspecs.__all__}
    scope |= {"torch": torch, "nn": torch.nn, "priorities": random_keys, "math": math}
    exec(textwrap.dedent(found[0]), scope)
    tree = ContextTree(32, 4, tail=4)
    arguments = {"shape": ModelShape(8, tree), "tree": tree, "run": RunStart(Path(), {}, None)}
    supplied = re.search(r"Factory: `factory\((\w*)\)`", text)
    assert supplied
    shapes = {"positions": HeadShape(2, 4, tree), "base": BaseShape(tree, 11, GaussianRope)}
    shape = shapes.get(kind, arguments.get(supplied[1]))
    check_product(kind, scope[found[1]](*([shape] if supplied[1] else [])))


def test_every_hook_is_described_with_its_ranks_and_an_implementation() -> None:
    for name, function in vars(hookspecs.Hooks).items():
        if name.startswith("_"):
            continue
        text = inspect.getdoc(function) or ""
        parameters = [each for each in inspect.signature(function).parameters if each != "self"]
        assert f"@hookimpl\ndef {name}({', '.join(parameters)}):\n" in text, f"{name} shows no implementation"
        if not name.startswith("register_"):
            assert re.search(r"every rank|rank 0", text, re.I), f"{name}: missing the ranks that call it"


def test_the_order_of_hooks_is_that_of_the_code() -> None:
    """The diagram of the page and of `Hooks`; tests/launcher/test_lifecycle.py compares real runs with it."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", HOOKS.split("<!-- hooks -->")[0], re.M | re.S)
    (shown,) = (block for block in blocks if block.startswith("checkpoint_loaded"))
    in_code = textwrap.dedent((inspect.getdoc(hookspecs.Hooks) or "").rsplit("ranks shown:\n\n", 1)[1])
    assert shown.strip() == in_code.strip()


def test_hooks_are_named_by_the_rule_of_the_page() -> None:
    for name in (name for name in vars(hookspecs.Hooks) if not name.startswith("_")):
        assert re.fullmatch(r"register_[a-z_]+s|([a-z]+_)?[a-z]+ed", name), name


def test_errors_that_authors_may_raise_are_documented() -> None:
    for kind in ("text", "task"):
        assert "Raise `UserError`" in page_of(kind)
    assert "(errors.md)" in PAGE


def test_the_example_of_hooks_writes_a_diary(tmp_path: Path, new_site, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"^```python\n(.*?)^```$", HOOKS, re.M | re.S)[0]
    new_site(tmp_path / "site").install("diary_of_runs", code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    hooks = all_plugins().hooks
    run = RunInfo(directory=tmp_path, rank=0, world_size=1, tokens=1024, step=1, total_tokens=1024)
    hooks.checkpoint_saved(run, Path("tokens-1024"))
    hooks.run_finished(run, {"status": "finished"})
    hooks.run_failed(run, ValueError("no luck"))
    sys.modules.pop("diary_of_runs", None)
    lines = (tmp_path / "diary.txt").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == ["saved tokens-1024", "finished", "rank 0 failed: no luck"]


def test_the_options_of_the_page_are_those_of_every_command_that_reads_plugins() -> None:
    known = {option for action in arguments()._actions for option in action.option_strings}
    table = set(re.findall(r"^\| `(--[\w-]+)", PAGE, re.M))
    assert table == {"--plugin", "--no-plugin", "--strict-plugins"}
    assert table <= known
    (line,) = re.findall(r"^(`run`, .*) take$", PAGE, re.M)
    commands = all_commands()
    taking = {name for name, command in commands.items() if table <= {o for p in command.params for o in p.opts}}
    assert set(re.findall(r"`(\w+)`", line)) == taking | {"run"}  # which passes on what it does not know


def test_the_versions_on_the_page_are_those_of_the_code() -> None:
    assert f'{API_ATTRIBUTE} = "{hookspecs.API_VERSION}"' in PAGE
    assert api_fits(hookspecs.API_VERSION)
    assert int(hookspecs.API_VERSION.split(".")[0]) == 0, "from 1.0 the page's table is a promise: test that it is kept"
