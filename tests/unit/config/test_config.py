"""gin files to configurations: what loads, what it builds, what is written back."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from mcframe import config
from mcframe.config import gin_reader as source
from mcframe.errors import Location, UserError
from mcframe.hookspecs import GistNet, hookimpl
from mcframe.registry.plugins import Registry

if TYPE_CHECKING:
    from nowhere import Unresolvable


@dataclass(frozen=True)
class Run:
    name: str
    gistnet: Callable[..., Any] | None = None
    steps: int = 10
    rate: float = 1e-3
    mode: Literal["fast", "slow"] = "fast"
    extra: Any = None
    settings: dict[str, Any] | None = None
    prompts: tuple[str, ...] = ()
    folder: Path | str = "runs"
    odd: Unresolvable | None = None


class Transformer:
    def __init__(self, shape: int, layers: int = 2, dropout: float = 0.0) -> None:
        self.shape, self.layers, self.dropout = shape, layers, dropout


class Needy:
    def __init__(self, shape: int, *, path: str) -> None:
        self.shape, self.path = shape, path


def context(tree: int, *, window: int, slots: int = 1) -> tuple[int, int, int]:
    if window % 4:
        raise UserError("window is not a multiple of 4", remedy="Round it.", binding="context.window")
    return tree, window, slots


def inner(depth: int = 1) -> int:
    if depth < 0:
        raise UserError("negative depth", remedy="Make it positive.", binding="inner.depth")
    if depth > 9:
        raise KeyError("a bug")
    return depth


def nested(value: int, *, other: Any = None) -> int:
    return value


class Plugin:
    @hookimpl
    def register_plugins(self, register):
        register("transformer", Transformer, kind="gistnet")
        register("needy", Needy, kind="gistnet")


@pytest.fixture
def registry():
    for name, factory in {"run": Run, "context": context, "inner": inner, "nested": nested}.items():
        config.register("", name, factory)
    registry = Registry()
    registry.register_plugin(Plugin(), "tests")
    yield registry
    config.clear()


@pytest.fixture
def load(registry, tmp_path, monkeypatch):
    """Write `main.gin` and others, load `main.gin`."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str, **files: str) -> config.Config:
        Path("main.gin").write_text(text)
        for name, content in files.items():
            Path(f"{name}.gin").write_text(content)
        return config.load(["main.gin"], overrides, registry)

    return load


# ---- loading -------------------------------------------------------------------------------------
def test_binds_constructors_and_references(load):
    loaded = load("run.name = 'x'\nrun.gistnet = @gistnet.transformer\ngistnet.transformer.layers = 4\n")
    run = loaded.build("run", steps=3)
    assert (run.name, run.steps) == ("x", 3)
    net = loaded.build(run.gistnet, 64)
    assert type(net) is Transformer
    assert (net.shape, net.layers) == (64, 4)
    assert type(pickle.loads(pickle.dumps(net))) is Transformer


def test_every_binding_has_its_location(load):
    loaded = load(
        "include 'base.gin'\n\nrun:\n    steps = 3\n    rate = 1\n",
        "run.name = 'z'",
        base="# comment\nrun.name = 'base'\nrun.mode = \\\n    'slow'\n",
    )
    assert {key: str(binding.location) for key, binding in loaded.bindings.items()} == {
        "run.name": """--set "run.name = 'z'\"""",
        "run.mode": "base.gin:3",
        "run.steps": "main.gin:4",
        "run.rate": "main.gin:5",
    }
    assert isinstance(loaded.bindings["run.mode"].location, Location)


def test_later_files_includes_and_overrides_win_in_this_order(load, registry):
    load("include 'base.gin'\nrun.steps = 2\nrun.rate = 0.2\n", base="run.steps = 1\nrun.rate = 0.1\nrun.name='b'\n")
    Path("second.gin").write_text("run.rate = 0.3\n")
    loaded = config.load(["main.gin", "second.gin"], ["run.name = 'c'"], registry)
    run = loaded.build("run")
    assert (run.steps, run.rate, run.name) == (2, 0.3, "c")


def test_loading_again_starts_from_nothing(load):
    first = load("run.name = 'x'\nrun.steps = 3\n")
    second = load("run.name = 'y'\n")
    assert second.build("run").steps == 10
    with pytest.raises(RuntimeError, match="another configuration"):
        first.build("run")


def test_macros_and_scopes(load):
    loaded = load(
        "WIDTH = 8\nALSO = %WIDTH\nrun.name = 'x'\nrun.extra = [%ALSO, {'w': %WIDTH}]\n"
        "run.gistnet = @small/gistnet.transformer\nsmall/gistnet.transformer.layers = 1\n"
        "gistnet.transformer.layers = 7\ngistnet.transformer.dropout = 0.5\n"
    )
    run = loaded.build("run")
    assert run.extra == [8, {"w": 8}]
    net = loaded.build(run.gistnet, 1)
    assert (net.layers, net.dropout) == (1, 0.5)
    assert [binding.key for binding in loaded.unused()] == ["gistnet.transformer.layers"]


def test_plugins_of_another_registry_are_gone(load):
    load("run.gistnet = @gistnet.transformer\nrun.name='x'\n")
    with pytest.raises(UserError, match=r"unknown plug-in @gistnet\.transformer"):
        config.load(["main.gin"], [], Registry())


def test_registering_again_and_while_a_configuration_is_loaded(load, registry):
    load("run.name = 'x'\n")
    config.register("", "run", Run)
    config.register("", "late", inner)
    assert config.load([], ["late.depth = 3"], registry).build("late") == 3


class Net(GistNet):
    def __init__(self, shape: int, layers: int = 2) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, children: Any, lod: int) -> Any: ...

    @classmethod
    def deep(cls, shape: int, *, layers: int = 20) -> Net:
        return cls(shape, layers)


class Offer:
    def __init__(self, factory):
        self.factory = factory

    @hookimpl
    def register_plugins(self, register):
        register("net", self.factory, kind="gistnet")


@pytest.mark.parametrize("factory", [Net, Net.deep, partial(Net, layers=9), lambda shape, layers: Net(shape, layers)])
def test_a_factory_may_be_anything_that_can_be_called(registry, factory):
    registry.register_plugin(Offer(factory), "offer")
    net = config.load([], ["gistnet.net.layers = 4"], registry).build("gistnet.net", 8)
    assert type(net) is Net
    assert net.layers == 4


# ---- files ---------------------------------------------------------------------------------------
@pytest.fixture
def presets(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("site") / "mcframe_presets"
    (folder / "models").mkdir(parents=True)
    (folder / "preset.gin").write_text("include 'models/small.gin'\nrun.name = 'preset'\n")
    (folder / "models" / "small.gin").write_text("run.steps = 77\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.mark.parametrize("name", ["preset.gin", "gin/preset.gin"])
def test_presets_are_found_from_anywhere(load, registry, presets, name):
    load("run.name = 'x'")
    assert config.load([name], [], registry).build("run").steps == 77


def test_includes_are_searched_in_the_files_folder_then_among_presets(load, presets):
    assert load("include 'preset.gin'\n").build("run").name == "preset"
    assert load("include 'preset.gin'\n", preset="run.name = 'sibling'\n").build("run").name == "sibling"


def test_the_checkouts_presets_are_found():
    assert Path(config.__file__).parents[2] / "gin" in source.preset_folders()


# ---- building ------------------------------------------------------------------------------------
def test_missing_values_are_named_before_anything_is_called(load):
    loaded = load("run.steps = 1\n")
    with pytest.raises(UserError, match="run: missing values for name") as caught:
        loaded.build("run")
    assert "run.name = ..." in caught.value.remedy
    with pytest.raises(UserError, match="context: missing values for window"):
        loaded.build("context", 1)


def test_missing_values_of_a_reference_called_later(load):
    loaded = load("run.name = 'x'\nrun.extra = @nested\n")
    with pytest.raises(UserError, match="nested: missing values for value"):
        loaded.build(loaded.build("run").extra)


def test_a_user_error_keeps_its_type_text_and_gets_the_location(load):
    loaded = load("context.slots = 2\ncontext.window = 10\n")
    with pytest.raises(UserError) as caught:
        loaded.build("context", 1)
    error = caught.value
    assert type(error) is UserError
    assert (error.message, error.remedy) == ("window is not a multiple of 4", "Round it.")
    assert str(error.location) == "main.gin:2"
    assert "configurable" not in str(error)


def test_a_user_error_from_deep_inside(load):
    loaded = load("nested.value = @inner()\ninner.depth = -1\n")
    with pytest.raises(UserError) as caught:
        loaded.build("nested")
    assert type(caught.value) is UserError
    assert str(caught.value.location) == "main.gin:2"


def test_bugs_come_through_unchanged(load):
    loaded = load("nested.value = @inner()\ninner.depth = 10\n")
    with pytest.raises(KeyError) as caught:
        loaded.build("nested")
    assert type(caught.value) is KeyError
    assert caught.value.args == ("a bug",)
    assert caught.traceback[-1].name == "inner"


# ---- writing back --------------------------------------------------------------------------------
EVERYTHING = """
DEPTH = -3
WORDS = ('one', "two's", 'with \\'both\\' "quotes"', 'line\\nbreak', 'ä')
run.name = 'quote \\' here # no comment'
run.gistnet = @scope/gistnet.transformer
run.steps = %DEPTH
run.rate = 1e-05
run.prompts = %WORDS
run.settings = {'zero': {'stage': 2, 'off': None, 'neg': -0.5}, 'list': [1, (2,), ()], 'inf': -1e999, 'ref': @inner()}
run.extra = [@inner(), @inner, %DEPTH, True, None, 1e999]
scope/gistnet.transformer.layers = 5
inner.depth = 4
nested.value = 1
"""


def comparable(run: Run) -> tuple[Any, ...]:
    """All fields but classes and functions, which gin creates for each use."""
    extra = [item for item in run.extra if not callable(item)]
    return run.name, run.steps, run.rate, run.prompts, run.settings, extra, type(run.gistnet(1)), run.gistnet(1).layers


def test_bound_text_loads_to_the_same_configuration(load):
    first = load(EVERYTHING)
    text, values, run = first.bound(), first.as_dict(), comparable(first.build("run"))
    second = load(text)
    assert second.bound() == text
    assert second.as_dict() == values
    assert comparable(second.build("run")) == run
    assert "import" not in text


def test_operative_text_loads_to_the_same_run(load):
    first = load(EVERYTHING)
    run = comparable(first.build("run"))
    text = first.operative()
    assert "run.mode = 'fast'" in text.splitlines()  # a default
    assert "scope/gistnet.transformer.layers = 5" in text.splitlines()
    assert "shape" not in text
    assert "nested" not in text  # bound, not used
    second = load(text)
    assert comparable(second.build("run")) == run
    assert second.operative() == text


def test_unused_bindings_are_listed(load):
    loaded = load("LAYERS = 3\nUSED = 5\nrun.name = 'x'\nrun.steps = %USED\ngistnet.transformer.layers = 4\n")
    loaded.build("run")
    assert [(b.key, str(b.location)) for b in loaded.unused()] == [
        ("LAYERS", "main.gin:1"),
        ("gistnet.transformer.layers", "main.gin:5"),
    ]


def test_a_value_that_the_caller_overrides_is_unused(load):
    loaded = load("run.name = 'x'\nrun.steps = 3\n")
    loaded.build("run", steps=4)
    assert [b.key for b in loaded.unused()] == ["run.steps"]


def test_as_dict_is_strict_json(load):
    values = load(EVERYTHING).as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["run.steps"] == -3
    assert values["run.gistnet"] == "@scope/gistnet.transformer"
    assert values["run.settings"]["inf"] == "-inf"
    assert values["run.prompts"][0] == "one"


def test_infinity_survives(load):
    assert load("run.name='x'\nrun.extra = -1e999\n").build("run").extra == -math.inf
