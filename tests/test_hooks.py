"""Every hook, called as the framework calls it: one test a hook, named after it; the last two tests count them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcframe.hookspecs import Hooks, RunInfo, hookimpl
from mcframe.recipe import all_plugins
from mcframe.registry import KINDS, Registry

RUN = RunInfo(directory=Path("run"), rank=1, world_size=2, tokens=3, step=4, total_tokens=5)
HOOKS = sorted(name for name in vars(Hooks) if not name.startswith("_"))


def thing(size: int = 1) -> None:
    """What is offered."""


def plugin(hook: str, implementation: Callable[..., None]) -> ModuleType:
    """A module that implements one hook."""
    module = ModuleType(f"with_{hook}")
    setattr(module, hook, hookimpl(implementation, specname=hook))
    return module


def calls(hook: str, implementation: Callable[..., None], call: Callable[[Registry], None]) -> None:
    """A plug-in with this implementation, beside one that takes none of the parameters, when `call` happens."""
    registry = Registry()
    registry.register_plugin(plugin(hook, implementation), "one")
    registry.register_plugin(plugin(hook, lambda: None), "takes no parameter")
    call(registry)


def offered(kind: str) -> None:
    """A plug-in offers two things through the hook of this kind, and nothing else of any kind."""
    hook, names = KINDS[kind], ["first", "second_2"]

    def register_all(register):
        for name in names:
            register(name, thing)

    registry = Registry()
    registry.register_plugin(plugin(hook, register_all), "one")
    found = {
        k: {name: entry.factory for name, entry in offers.items()} for k, offers in registry.implementations.items()
    }
    assert found == {**{k: {} for k in KINDS}, kind: dict.fromkeys(names, thing)}


def heard(hook: str, call: Callable[[Registry], None], **expected: Any) -> None:
    """A plug-in that takes every parameter of the hook gets what is expected, once."""
    seen: list[dict[str, Any]] = []
    parameters = list(expected)
    scope: dict[str, Any] = {"seen": seen}
    exec(
        f"def implementation({', '.join(parameters)}): seen.append(dict({', '.join(f'{p}={p}' for p in parameters)}))",
        scope,
    )
    calls(hook, scope["implementation"], call)
    assert seen == [expected]
    declared = [name for name in inspect.signature(getattr(Hooks, hook)).parameters if name != "self"]
    assert parameters == declared


def test_hook_register_gistnets():
    offered("gistnet")


def test_hook_register_lensnets():
    offered("lensnet")


def test_hook_register_allocators():
    offered("allocator")


def test_hook_register_variants():
    offered("variants")


def test_hook_register_text_sources():
    offered("text")


def test_hook_register_tokenizers():
    offered("tokenizer")


def test_hook_register_tasks():
    offered("task")


def test_hook_register_evaluations():
    offered("evaluation")


def test_hook_register_sinks():
    offered("sink")


def test_hook_run_started():
    heard("run_started", lambda registry: registry.hooks.run_started(RUN), run=RUN)


def test_hook_step_finished():
    heard("step_finished", lambda registry: registry.hooks.step_finished(RUN), run=RUN)


def test_hook_metrics_logged():
    metrics = {"train/loss": 1.0}
    heard("metrics_logged", lambda registry: registry.hooks.metrics_logged(RUN, metrics), run=RUN, metrics=metrics)


def test_hook_checkpoint_saved():
    place = Path("run/checkpoints/tokens-3")
    heard("checkpoint_saved", lambda registry: registry.hooks.checkpoint_saved(RUN, place), run=RUN, checkpoint=place)


def test_hook_run_finished():
    summary = {"status": "finished"}
    heard("run_finished", lambda registry: registry.hooks.run_finished(RUN, summary), run=RUN, summary=summary)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test(hook: str) -> None:
    """Here, as `test_hook_NAME`, or in another file under that name."""
    found = [
        file
        for file in Path(__file__).parent.rglob("test_*.py")
        if re.search(rf"^def test_hook_{hook}\(", file.read_text("utf-8"), re.M)
    ]
    assert found, f"write a test called test_hook_{hook}"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_reached_through_a_typed_method_or_a_kind(hook: str) -> None:
    """Nobody calls pluggy's untyped relay: a hook without either would never be called."""
    if hook.startswith("register_"):
        assert hook in KINDS.values()
        return
    method = getattr(type(Registry().hooks), hook)
    assert inspect.signature(method) == inspect.signature(getattr(Hooks, hook))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_test_of_what_comes_with_it(kind: str) -> None:
    """Some test, of this folder's others, uses each implementation that comes with mcframe."""
    files = [file.read_text("utf-8") for file in Path(__file__).parent.rglob("test_*.py") if file != Path(__file__)]
    own = [entry for entry in all_plugins().implementations[kind].values() if entry.distribution == "mcframe"]
    assert own, f"nothing that comes with mcframe shows how a {kind} is written"
    for entry in own:
        words = (rf"\b{entry.factory.__name__}\b", rf"@?{kind}\.{entry.name}\b", rf"[\"']{entry.name}[\"']")
        assert any(re.search("|".join(words), text) for text in files), f"write a test of {kind}.{entry.name}"
