"""Bounds of settings: every number has some, and values out of range are refused."""

import pytest

from mcframe.bounds import AnyNumber
from mcframe.config.binding_checks import broken_bound
from mcframe.config.configurables import Configurable, configurable_of
from mcframe.config.parameters import bounds_text, parts
from mcframe.config.run_config import GIN_CONFIGURABLES, all_plugins
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape

TREE = ContextTree(window=27, block_size=3, levels=2, tail=0)
OWN_CHECK = {"deepspeed.zero_stage"}
"""Numbers that have a check with its own message in place of bounds."""

WITH_OTHERS = [
    *((f"gistnet.{name}.heads", 3) for name in ("transformer", "multihead", "contextual")),
    ("gistnet.contextual.layers", 0),
    ("lensnet.transformer.heads", 3),
    *(("allocator.hierarchical.kept", kept) for kept in ((), (0.5,), (0.5, 0.5, 0.5))),
]
"""Values that do not fit the model or another option."""

OUT_OF_RANGE = [
    ("context.block_size", 0),
    ("gpt.heads", 0),
    ("gpt.depth", 0),
    ("run.total_tokens", 10**21),
    ("optimizer.weight_decay", -0.1),
    ("optimizer.adamw.betas", (0.9,)),
    ("optimizer.adamw.betas", (0.9, 0.95, 0.99)),
    ("optimizer.muon.betas", (0.9, 1.0)),
    ("optimizer.muon.momentum", 1.5),
    ("schedule.trapezoid.warmup_ratio", 1.5),
    ("callback.early_stopping.patience", 0),
    ("evaluation.gist_quality.windows", 1),
    ("evaluation.focus_quality.budgets", (0.5, 1.0)),
    ("text.mixture.weights", (1.0, 0.0)),
    ("positions.gaussian_rope.base", 1.0),
    ("lens_targets.scale_nats", 0.0),
    ("lens_targets.decay", 1.0),
    ("loss.preference.weight", -0.1),
    ("loss.preference.temperature", 1e-40),
    ("loss.preference.focal_gamma", -1.0),
    ("loss.ema_kl.decay", -0.1),
    ("loss.reconstruction.blocks", ()),
    ("lensnet.transformer.width", 0),
    ("lensnet.transformer.heads", 0),
    ("lensnet.mlp.layers", 0),
    ("lensnet.surprise.scale", 0.0),
    ("gistnet.transformer.layers", -1),
    ("gistnet.transformer.base_layer", -1),
    ("gistnet.contextual.window", -1),
    ("allocator.greedy.iterations", 0),
    ("allocator.hierarchical.kept", (0.5, 1.5)),
    ("allocator.stochastic_greedy.temperature", -1.0),
    *((f"variants.{name}.count", 0) for name in ("aggressive", "contiguous", "lens_guided", "single_span")),
    ("variants.lens_guided.random_fraction", 1.5),
    ("sampling.temperature", 1e-40),
]


def configurable(name):
    if name in GIN_CONFIGURABLES:
        return Configurable(name, GIN_CONFIGURABLES[name], "")
    plugins = [each for offered in all_plugins().implementations.values() for each in offered.values()]
    return next(found for each in plugins if (found := configurable_of(each)).name == name)


def every_configurable():
    yield from map(configurable, GIN_CONFIGURABLES)
    for offered in all_plugins().implementations.values():
        yield from (configurable_of(each) for each in offered.values() if each.distribution)


def test_every_number_has_bounds_or_is_any_number():
    without = []
    for entry in every_configurable():
        for option in entry.parameters:
            types = parts(entry.annotation(option))
            if (int in types or float in types) and not any(each == AnyNumber or bounds_text(each) for each in types):
                without.append(f"{entry.name}.{option}")
    assert set(without) == OWN_CHECK, "state bounds with mcframe.bounds; AnyNumber if every number is allowed"


def test_every_default_is_in_range():
    for entry in every_configurable():
        for option, parameter in entry.parameters.items():
            if isinstance(parameter.default, int | float | tuple) and parameter.default is not None:
                assert not broken_bound(entry.annotation(option), parameter.default), (entry.name, option)


@pytest.mark.parametrize(("binding", "value"), OUT_OF_RANGE)
def test_value_out_of_range(binding, value):
    name, _, option = binding.rpartition(".")
    assert broken_bound(configurable(name).annotation(option), value)


@pytest.mark.parametrize(("binding", "value"), WITH_OTHERS)
def test_value_that_does_not_fit_the_model(binding, value):
    name, _, option = binding.rpartition(".")
    entry = configurable(name)
    with pytest.raises(UserError) as caught:
        entry.factory(ModelShape(8, TREE) if entry.kind in ("gistnet", "lensnet") else TREE, **{option: value})
    assert caught.value.binding == binding
