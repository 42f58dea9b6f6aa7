"""gin files to a `Recipe`: where configuration, plug-ins and settings meet. Nothing below this module knows gin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mcframe import __version__, config
from mcframe.chosen import Chosen
from mcframe.config import Config
from mcframe.data.sources import HuggingFace, LocalFiles, StandardLibrary
from mcframe.data.tasks.induction import Induction
from mcframe.data.tasks.needle import Needle
from mcframe.data.tasks.recall import Recall
from mcframe.data.tokenizers import BPE, Bytes
from mcframe.discovery import INSTALLED, PluginOptions, discover
from mcframe.evaluation.controls import Controls
from mcframe.evaluation.focus import Focus
from mcframe.hookspecs import API_VERSION, Register, hookimpl
from mcframe.modeling.gpt import GPT
from mcframe.modeling.objectives import Objectives
from mcframe.modeling.rope import GaussianRope
from mcframe.plugin_failure import explain
from mcframe.registry import KINDS, Registered, Registry
from mcframe.telemetry.prometheus_sink import Prometheus
from mcframe.training.settings import (
    SEVERAL,
    Cadence,
    ContextSettings,
    DataSettings,
    DeepSpeedSettings,
    OptimizerSettings,
    Recipe,
    Sampling,
    Schedule,
    TelemetrySettings,
)

SETTINGS = {
    "context": ContextSettings,
    "objectives": Objectives,
    "optimizer": OptimizerSettings,
    "schedule": Schedule,
    "deepspeed": DeepSpeedSettings,
    "cadence": Cadence,
    "data": DataSettings,
    "sampling": Sampling,
    "telemetry": TelemetrySettings,
}
"""Groups of settings that gin files bind by name: `context.window = 512`."""

PUBLISHED = {**SETTINGS, "gpt": GPT, "run": Recipe}
"""All that gin files bind of a run besides its plug-ins."""


DEFAULTS = {"evaluations": ("evaluation.controls", "evaluation.focus"), "positions": "positions.gaussian_rope"}
"""What is taken where `run` says None of what it cannot be without."""


class BuiltIn:
    """What the framework cannot be without, registered as a plug-in's would be."""

    mcframe_api = API_VERSION

    @hookimpl
    def register_positions(self, register: Register) -> None:
        """`@positions.gaussian_rope`."""
        register("gaussian_rope", GaussianRope)

    @hookimpl
    def register_text_sources(self, register: Register) -> None:
        """`@text.standard_library`, `@text.local_files`, `@text.huggingface`."""
        register("standard_library", StandardLibrary)
        register("local_files", LocalFiles)
        register("huggingface", HuggingFace)

    @hookimpl
    def register_tokenizers(self, register: Register) -> None:
        """`@tokenizer.bytes`, `@tokenizer.bpe`."""
        register("bytes", Bytes)
        register("bpe", BPE)

    @hookimpl
    def register_tasks(self, register: Register) -> None:
        """`@task.recall`, `@task.needle`, `@task.induction`."""
        register("recall", Recall)
        register("needle", Needle)
        register("induction", Induction)

    @hookimpl
    def register_evaluations(self, register: Register) -> None:
        """`@evaluation.controls`, `@evaluation.focus`."""
        register("controls", Controls)
        register("focus", Focus)

    @hookimpl
    def register_sinks(self, register: Register) -> None:
        """`@sink.prometheus`."""
        register("prometheus", Prometheus)


@dataclass(frozen=True)
class Loaded:
    """A recipe, the configuration it came from, and the plug-ins that are installed."""

    recipe: Recipe
    config: Config
    registry: Registry

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Within it, a UserError that names a binding gets its place, and an error in a plug-in the plug-in's name."""
        with self.config.placing():
            try:
                yield
            except Exception as error:
                if (explained := explain(error, self.registry)) is not None:
                    raise explained from error
                raise


def all_plugins(options: PluginOptions = INSTALLED) -> Registry:
    """What is installed, what comes with the framework itself, and what the options add. Raises as `discover` does."""
    registry = discover(options)
    registry.register_plugin(BuiltIn(), "mcframe.built-in", distribution="mcframe", version=__version__)
    return registry


def load_config(files: Sequence[Path | str], overrides: Sequence[str], registry: Registry) -> Config:
    """`config.load` for all that a run is made of."""
    for name, factory in PUBLISHED.items():
        config.register("", name, factory)
    return config.load(files, overrides, registry)


def load_recipe(files: Sequence[Path | str], overrides: Sequence[str], plugins: PluginOptions = INSTALLED) -> Loaded:
    """Read gin files and `--set` overrides. Raises UserError, with file and line, for whatever is wrong."""
    registry = all_plugins(plugins)
    loaded = load_config(files, overrides, registry)
    groups: dict[str, Any] = {name: loaded.build(name) for name in SETTINGS}
    recipe: Recipe = loaded.build("run", gpt=partial(loaded.build, "gpt"), **groups)
    return Loaded(replace(recipe, **_factories(recipe, loaded, registry)), loaded, registry)


def _factories(recipe: Recipe, loaded: Config, registry: Registry) -> dict[str, Any]:
    """What is chosen of each kind, as gin files write it, ready to be called."""
    bound, factories = loaded.as_dict(), dict[str, Any]()
    for kind in KINDS:
        field = SEVERAL.get(kind, kind)
        value, written = getattr(recipe, field), bound.get(f"run.{field}")
        if value is None:
            value = written = DEFAULTS.get(field)
        if value is None:
            continue

        def chosen(factory: Any, name: str, *, kind: str = kind) -> Chosen:
            return Chosen(registry.implementations[kind][name.rpartition(".")[2]], factory, loaded, registry)

        if kind in SEVERAL:
            factories[field] = tuple(map(chosen, value, written or ()))
        else:
            factories[field] = chosen(value, str(written))
    return factories


def choosing(entry: Registered) -> str:
    """The binding that selects a plug-in for a run."""
    reference = f"@{entry.kind}.{entry.name}"
    return f"run.{SEVERAL[entry.kind]} = [{reference}]" if entry.kind in SEVERAL else f"run.{entry.kind} = {reference}"
