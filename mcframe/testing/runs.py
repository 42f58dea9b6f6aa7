"""The real runs that a plug-in goes through, for the clauses about training and for the matrix."""

from __future__ import annotations

from mcframe.config.run_config import selecting_line
from mcframe.testing.plugin_under_test import PARTS, PluginUnderTest
from mcframe.testing.requirements import Skipped
from mcframe.testing.trainings import STEP_TOKENS, Training

STAGES = (0, 1, 2, 3)
CALLED_IN_STEPS = (*PARTS, "positions", "loss")
"""The kinds that a training step calls, so that ZeRO may matter to them."""


def alone(plugin: PluginUnderTest) -> list[Training]:
    """Its runs on one rank: uninterrupted, and gone on with from the middle."""
    whole = Training(_settings(plugin), given(plugin))
    return [whole, Training(whole.settings, whole.plugins, resumes=whole)]


def on_two_ranks(plugin: PluginUnderTest) -> list[Training]:
    """Its runs on two ranks, one a ZeRO stage; one in all where it is no part of the model."""
    stages = STAGES if plugin.kind in CALLED_IN_STEPS else STAGES[:1]
    settings = _settings(plugin)
    return [Training((*settings, f"deepspeed.zero_stage = {n}"), given(plugin), ranks=2) for n in stages]


def _settings(plugin: PluginUnderTest) -> tuple[str, ...]:
    often = (f"evaluation.every = {2 * STEP_TOKENS}",) if plugin.kind == "evaluation" else ()
    return (selecting_line(plugin.entry), *often, *plugin.bindings)


def given(plugin: PluginUnderTest) -> tuple[str, ...]:
    """What `--plugin` must name so that other processes know it too. Raises Skipped where nothing would help."""
    home = plugin.registry.plugins[plugin.entry.plugin]
    if not home.distribution and not home.spec:
        raise Skipped("it is known to this process alone; name its file with --plugin, or install it")
    return tuple(each.spec for each in plugin.registry.plugins.values() if each.spec)
