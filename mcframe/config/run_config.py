"""From gin files to a `RunConfig`: configuration, plug-ins and settings meet here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcframe import config
from mcframe.config import Config
from mcframe.config.schema import (
    MULTI_KINDS,
    ContextConfig,
    DataConfig,
    RunConfig,
)
from mcframe.config.training_schema import (
    AnomalyConfig,
    CheckpointConfig,
    DeepSpeedConfig,
    EvaluationConfig,
    FiguresConfig,
    LoggingConfig,
    OptimizerConfig,
    SamplingConfig,
    ValidationConfig,
)
from mcframe.losses.lens_targets import LensTargetsConfig
from mcframe.registry.attribution import exits_as_errors, explain
from mcframe.registry.discovery import INSTALLED, PluginOptions, discover
from mcframe.registry.factory import PluginFactory
from mcframe.registry.plugins import KINDS, Registered, Registry
from mcframe.runtime.session_config import SessionDefaults

SETTINGS = {
    "context": ContextConfig,
    "lens_targets": LensTargetsConfig,
    "optimizer": OptimizerConfig,
    "deepspeed": DeepSpeedConfig,
    "data": DataConfig,
    "validation": ValidationConfig,
    "sampling": SamplingConfig,
    "session": SessionDefaults,
    "evaluation": EvaluationConfig,
    "figures": FiguresConfig,
    "checkpoint": CheckpointConfig,
    "anomaly": AnomalyConfig,
    "logging": LoggingConfig,
}
"""Groups of settings that gin files bind by name: `context.window = 512`."""

GIN_CONFIGURABLES = {**SETTINGS, "run": RunConfig}
"""All that gin files bind of a run, except its plug-ins."""

DEFAULT_LOSSES = ("loss.next_token", "loss.variants", "loss.delta_penalty", "loss.preference", "loss.balance")
DEFAULTS = {
    "evaluations": ("evaluation.gist_quality", "evaluation.focus_quality"),
    "losses": DEFAULT_LOSSES,
    "base": "base.gpt",
    "positions": "positions.gaussian_rope",
    "optimizer": "optimizer.adamw",
    "schedule": "schedule.trapezoid",
}
"""The plug-ins of fields of `run` that are None, where a run cannot do without."""

PLUGIN_FIELDS: dict[str, str] = {MULTI_KINDS.get(kind, kind): kind for kind in KINDS} | {"extra_losses": "loss"}
"""The fields of `run` that hold plug-ins, and the kind of each."""


@dataclass(frozen=True)
class Loaded:
    """A run's settings, the configuration that they come from, and the registry of plug-ins."""

    run_config: RunConfig
    config: Config
    registry: Registry
    baseline: str | None = None

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Attach a binding's location to a UserError of the body, and a plug-in's name to an error of a plug-in."""
        with self.config.locating_errors():
            try:
                with exits_as_errors():
                    yield
            except Exception as error:
                if (explained := explain(error, self.registry)) is not None:
                    raise explained from error
                raise


def all_plugins(options: PluginOptions = INSTALLED) -> Registry:
    """Return every plug-in that is installed, changed by the options. Raises as `discover` does."""
    return discover(options)


def load_config(
    files: Sequence[Path | str], overrides: Sequence[str], registry: Registry, baseline: str | None = None
) -> Config:
    """Load gin files with all settings of a run registered; see `mcframe.config.load`."""
    for name, factory in GIN_CONFIGURABLES.items():
        config.register("", name, factory)
    return config.load(files, overrides, registry, baseline)


def load_run_config(
    files: Sequence[Path | str],
    overrides: Sequence[str],
    plugins: PluginOptions = INSTALLED,
    baseline: str | None = None,
) -> Loaded:
    """Read gin files and `--set` overrides, and the binding of a baseline option if there is one.

    Raises:
        UserError: Anything in them is wrong; with file and line.
    """
    registry = all_plugins(plugins)
    loaded = load_config(files, overrides, registry, baseline)
    groups: dict[str, Any] = {name: loaded.build(name) for name in SETTINGS}
    groups["optimizer_config"] = groups.pop("optimizer")  # `run.optimizer` is the plug-in
    run_config: RunConfig = loaded.build("run", **groups)
    with loaded.locating_errors():
        registry.enable_hooks(run_config.hooks)
    return Loaded(replace(run_config, **_factories(run_config, loaded, registry)), loaded, registry, baseline)


def _factories(run_config: RunConfig, loaded: Config, registry: Registry) -> dict[str, Any]:
    """Return the plug-ins that a run selects, as factories ready to be called, by the name of their field in `run`."""
    bound, factories = loaded.as_dict(), dict[str, Any]()
    for field, kind in PLUGIN_FIELDS.items():
        value, written = getattr(run_config, field), bound.get(f"run.{field}")
        if value is None:
            value = written = DEFAULTS.get(field)
        if value is None:
            continue

        def factory_of(factory: Any, name: str, *, kind: str = kind) -> PluginFactory:
            item = name.rpartition(".")[2]
            if (entry := registry.implementations[kind].get(item)) is None:  # a default that packages contest
                raise registry.unknown(kind, item)
            return PluginFactory(entry, factory, loaded, registry)

        if isinstance(value, (list, tuple)):
            factories[field] = tuple(map(factory_of, value, written or ()))
        else:
            factories[field] = factory_of(value, str(written))
    return factories


def selecting_line(entry: Registered) -> str:
    """Return the binding that selects a plug-in for a run."""
    reference = f"@{entry.kind}.{entry.name}"
    if reference[1:] in DEFAULT_LOSSES:
        return f"run.losses = [{', '.join(f'@{name}' for name in DEFAULT_LOSSES)}]"
    if entry.kind == "loss":  # added to the losses of the run, not in place of them
        return f"run.extra_losses = [{reference}]"
    if entry.kind in MULTI_KINDS:
        return f"run.{MULTI_KINDS[entry.kind]} = [{reference}]"
    return f"run.{entry.kind} = {reference}"
