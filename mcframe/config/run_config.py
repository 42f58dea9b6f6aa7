"""From gin files to a `RunConfig`: configuration, plug-ins and settings meet here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mcframe import __version__, config
from mcframe.config import Config
from mcframe.config.schema import (
    MULTI_KINDS,
    CadenceConfig,
    ContextConfig,
    DataConfig,
    DeepSpeedConfig,
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    ScheduleConfig,
    ValidationConfig,
)
from mcframe.data.sources import HuggingFace, LocalFiles, StandardLibrary
from mcframe.data.synthetic.induction import Induction
from mcframe.data.synthetic.needle import Needle
from mcframe.data.synthetic.recall import Recall
from mcframe.data.tokenizers import BPE, Bytes
from mcframe.evaluation.focus_quality import FocusQuality
from mcframe.evaluation.gist_quality import GistQuality
from mcframe.hookspecs import API_VERSION, Register, hookimpl
from mcframe.metrics.prometheus_logger import PrometheusLogger
from mcframe.modeling.gpt import GPT
from mcframe.modeling.objectives import Objectives
from mcframe.modeling.rope import GaussianRope
from mcframe.registry.attribution import explain
from mcframe.registry.discovery import INSTALLED, PluginOptions, discover
from mcframe.registry.factory import PluginFactory
from mcframe.registry.plugins import KINDS, Registered, Registry

SETTINGS = {
    "context": ContextConfig,
    "objectives": Objectives,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "deepspeed": DeepSpeedConfig,
    "cadence": CadenceConfig,
    "data": DataConfig,
    "validation": ValidationConfig,
    "sampling": SamplingConfig,
    "logging": LoggingConfig,
}
"""Groups of settings that gin files bind by name: `context.window = 512`."""

GIN_CONFIGURABLES = {**SETTINGS, "gpt": GPT, "run": RunConfig}
"""All that gin files bind of a run, except its plug-ins."""

DEFAULTS = {
    "evaluations": ("evaluation.gist_quality", "evaluation.focus_quality"),
    "positions": "positions.gaussian_rope",
}
"""The plug-ins of fields of `run` that are None, where a run needs one."""


class BuiltIn:
    """The implementations that mcframe itself registers."""

    mcframe_api = API_VERSION

    @hookimpl
    def register_plugins(self, register: Register) -> None:
        """Register positions, text sources, tokenizers, synthetic tasks, evaluations and loggers."""
        register("gaussian_rope", GaussianRope)
        register("standard_library", StandardLibrary)
        register("local_files", LocalFiles)
        register("huggingface", HuggingFace)
        register("bytes", Bytes)
        register("bpe", BPE)
        register("recall", Recall)
        register("needle", Needle)
        register("induction", Induction)
        register("gist_quality", GistQuality)
        register("focus_quality", FocusQuality)
        register("prometheus", PrometheusLogger)


@dataclass(frozen=True)
class Loaded:
    """A run's settings, the configuration that they come from, and the registry of plug-ins."""

    run_config: RunConfig
    config: Config
    registry: Registry

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Attach a binding's location to a UserError of the body, and a plug-in's name to an error of a plug-in."""
        with self.config.locating_errors():
            try:
                yield
            except Exception as error:
                if (explained := explain(error, self.registry)) is not None:
                    raise explained from error
                raise


def all_plugins(options: PluginOptions = INSTALLED) -> Registry:
    """Return the registry of installed plug-ins, built-in ones and those that the options add. Raises as `discover`."""
    registry = discover(options)
    registry.register_plugin(BuiltIn(), "mcframe.built-in", distribution="mcframe", version=__version__)
    return registry


def load_config(files: Sequence[Path | str], overrides: Sequence[str], registry: Registry) -> Config:
    """Load gin files with all settings of a run registered; see `mcframe.config.load`."""
    for name, factory in GIN_CONFIGURABLES.items():
        config.register("", name, factory)
    return config.load(files, overrides, registry)


def load_run_config(
    files: Sequence[Path | str], overrides: Sequence[str], plugins: PluginOptions = INSTALLED
) -> Loaded:
    """Read gin files and `--set` overrides.

    Raises:
        UserError: Anything in them is wrong; with file and line.
    """
    registry = all_plugins(plugins)
    loaded = load_config(files, overrides, registry)
    groups: dict[str, Any] = {name: loaded.build(name) for name in SETTINGS}
    run_config: RunConfig = loaded.build("run", gpt=partial(loaded.build, "gpt"), **groups)
    return Loaded(replace(run_config, **_factories(run_config, loaded, registry)), loaded, registry)


def _factories(run_config: RunConfig, loaded: Config, registry: Registry) -> dict[str, Any]:
    """Return the plug-ins that a run selects, as factories, by the name of their field in `run`."""
    bound, factories = loaded.as_dict(), dict[str, Any]()
    for kind in KINDS:
        field = MULTI_KINDS.get(kind, kind)
        value, written = getattr(run_config, field), bound.get(f"run.{field}")
        if value is None:
            value = written = DEFAULTS.get(field)
        if value is None:
            continue

        def chosen(factory: Any, name: str, *, kind: str = kind) -> PluginFactory:
            return PluginFactory(registry.implementations[kind][name.rpartition(".")[2]], factory, loaded, registry)

        if kind in MULTI_KINDS:
            factories[field] = tuple(map(chosen, value, written or ()))
        else:
            factories[field] = chosen(value, str(written))
    return factories


def choosing(entry: Registered) -> str:
    """Return the binding that selects a plug-in for a run."""
    reference = f"@{entry.kind}.{entry.name}"
    return (
        f"run.{MULTI_KINDS[entry.kind]} = [{reference}]"
        if entry.kind in MULTI_KINDS
        else f"run.{entry.kind} = {reference}"
    )
