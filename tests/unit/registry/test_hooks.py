"""Every hook, implemented by a plug-in and called as the framework calls it; that a run calls them: test_lifecycle."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError
from mcframe.hookspecs import EvalResult, GistNet, Hooks, RunInfo, hookimpl
from mcframe.registry.plugins import KINDS, REGISTRATION_HOOK, Registry

RUN = RunInfo(directory=Path("run"), rank=1, world_size=2, tokens=3, step=4, total_tokens=5)
HOOKS = sorted(name for name in vars(Hooks) if not name.startswith("_"))


def thing(size: int = 1) -> None:
    """A factory without a kind."""


def plugin(hook: str, implementation: Callable[..., None]) -> ModuleType:
    """A module that implements one hook."""
    module = ModuleType(f"with_{hook}")
    setattr(module, hook, hookimpl(implementation, specname=hook))
    return module


CALLS: dict[str, dict[str, Any]] = {
    "checkpoint_loaded": {"run": RUN, "checkpoint": Path("run/checkpoints/tokens-3")},
    "run_started": {"run": RUN},
    "step_finished": {"run": RUN},
    "metrics_logged": {"run": RUN, "metrics": {"train/loss": 1.0}},
    "checkpoint_saved": {"run": RUN, "checkpoint": Path("run/checkpoints/tokens-3")},
    "evaluated": {"run": RUN, "name": "controls", "result": EvalResult({"eval/gist_quality/full": 1.0})},
    "run_finished": {"run": RUN, "summary": {"status": "finished"}},
    "run_failed": {"run": RUN, "error": ValueError("no luck")},
}
"""What each hook that offers nothing is called with."""


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if not hook.startswith("register_")])
def test_each_hook_is_called_with_its_parameters(hook: str) -> None:
    """One that takes every parameter gets each, once, next to one that takes none, through the typed method."""
    seen: list[dict[str, Any]] = []
    expected = CALLS[hook]  # a new hook needs a line there
    declared = [name for name in inspect.signature(getattr(Hooks, hook)).parameters if name != "self"]
    scope: dict[str, Any] = {"seen": seen}
    taken = ", ".join(f"{name}={name}" for name in declared)
    exec(f"def implementation({', '.join(declared)}): seen.append(dict({taken}))", scope)
    registry = Registry()
    registry.register_plugin(plugin(hook, scope["implementation"]), "one")
    registry.register_plugin(plugin(hook, lambda: None), "takes no parameter")
    getattr(registry.hooks, hook)(**expected)
    assert seen == [expected]


class Net(GistNet):
    """Registered by its class, and by a function that returns one."""

    def __init__(self, shape): ...

    def forward(self, children, lod): ...


def make_net(shape) -> Net:
    return Net(shape)


def offers_of(*arguments, **options) -> dict[str, list[str]]:
    """Return the implementations of a plug-in that registers one, by kind."""
    registry = Registry()
    registry.register_plugin(plugin("register_plugins", lambda register: register(*arguments, **options)), "one")
    return {kind: list(offers) for kind, offers in registry.implementations.items() if offers}


@pytest.mark.parametrize("factory", [Net, make_net, functools.partial(Net, 1)])
def test_the_kind_follows_from_the_base_class_or_the_annotation(factory):
    assert offers_of("mine", factory) == {"gistnet": ["mine"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_passed(kind):
    assert offers_of("mine", thing, kind=kind) == {kind: ["mine"]}


@pytest.mark.parametrize("factory", [thing, lambda shape: None, dict])
def test_a_kind_that_cannot_be_inferred_is_refused(factory):
    with pytest.raises(UserError, match="expected a class that derives from one interface"):
        offers_of("mine", factory)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="did you mean gistnet"):
        offers_of("mine", Net, kind="gistnets")


def test_an_error_in_run_failed_is_noted_to_the_first_one() -> None:
    registry, error = Registry(), ValueError("no luck")

    def fail():
        raise OSError("mail server is down")

    registry.register_plugin(plugin("run_failed", fail), "one")
    registry.hooks.run_failed(RUN, error)
    assert error.__notes__ == ["a plug-in's hook run_failed failed in turn: OSError: mail server is down"]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_reached_through_a_typed_method_or_a_kind(hook: str) -> None:
    """pluggy's untyped relay is never called directly: a hook without either would never be called."""
    if hook == REGISTRATION_HOOK:
        return
    method = getattr(type(Registry().hooks), hook)
    assert inspect.signature(method) == inspect.signature(getattr(Hooks, hook))


def test_every_first_party_implementation_has_a_test() -> None:
    """Some other test uses each implementation that comes with mcframe; there is one of every kind."""
    files = [file for file in Path(__file__).parents[2].rglob("*.py") if file != Path(__file__)]
    tests = "\n".join(file.read_text("utf-8") for file in files)
    for kind, offers in all_plugins().implementations.items():
        own = [entry for entry in offers.values() if entry.distribution == "mcframe"]
        assert own, f"no example of a {kind} comes with mcframe"
        for entry in own:
            names = (f"{kind}.{entry.name}", f'"{entry.name}"', f"'{entry.name}'", entry.factory.__name__)
            assert any(name in tests for name in names), f"write a test of {kind}.{entry.name}"
