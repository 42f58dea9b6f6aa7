"""A fuzz of bindings over all settings: a run is built, or refused with one message; never another exception.

MCFRAME_FUZZ_SECONDS sets the time of the long test.
"""

import os
import time

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mcframe.config.configurables import Configurable, configurable_of
from mcframe.config.run_config import GIN_CONFIGURABLES, PLUGIN_FIELDS, all_plugins, load_run_config
from mcframe.config.schema import MULTI_KINDS
from mcframe.config.values import Reference, render
from mcframe.errors import UserError
from mcframe.interfaces.base_model import parameter_count
from mcframe.training.build import build_evaluations, build_optimizer, build_schedule, build_step, build_task
from mcframe.training.param_groups import param_groups
from mcframe.training.train_step import StepBatch

VOCABULARY, STEPPED = 257, 300_000
EDGES = [-(2**63), -1, 0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 1000, 65_537, 2**31, 2**63 - 1, 2**63, 10**21]
FRACTIONS = [
    -1.0,
    -1e-9,
    0.0,
    1e-300,
    1e-40,
    1e-30,
    1e-3,
    0.1,
    0.5,
    0.99,
    1.0,
    1.5,
    8.0,
    1e30,
    1e39,
    1e300,
    float("inf"),
]
WORDS = ["", "mean", "query", "heads", "cls", "gist", "drop", "base", "auto", "bf16", "enabled", "zero_optimization"]
ATOMS = st.one_of(
    st.sampled_from(EDGES), st.integers(-3, 300), st.sampled_from(FRACTIONS), st.floats(allow_nan=False),
    st.booleans(), st.none(), st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=5),
)  # fmt: skip
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=2),
    ),
    max_leaves=4,
)  # fmt: skip


def parameters():
    """Return every binding of the settings and of mcframe's plug-ins, and the references to plug-ins by kind."""
    registry = all_plugins()
    entries = [Configurable(name, factory, "") for name, factory in GIN_CONFIGURABLES.items()]
    names = {}
    for kind, offered in registry.implementations.items():
        entries += [configurable_of(each) for each in offered.values()]
        names[kind] = [Reference("", f"{kind}.{name}", False) for name in offered]
    return [f"{entry.name}.{name}" for entry in entries for name in entry.parameters], names


BINDINGS, REFERENCES = parameters()


@st.composite
def bindings(draw):
    """Draw up to three bindings, most of them with a value of a plausible type."""
    drawn = {}
    for key in draw(st.lists(st.sampled_from(BINDINGS), min_size=1, max_size=3, unique=True)):
        kind = PLUGIN_FIELDS.get(key.removeprefix("run.")) if key.startswith("run.") else None
        plausible = ATOMS
        if kind is not None and REFERENCES[kind]:
            one = st.sampled_from(REFERENCES[kind])
            plausible = st.lists(one, max_size=3) if kind in MULTI_KINDS else one
        drawn[key] = draw(st.one_of(plausible, plausible, plausible, VALUES))
    return tuple(f"{key} = {render(value)}" for key, value in drawn.items())


def build(smoke, lines):
    """Build all parts of a run on the meta device, and run a step of a small one. Return whether it is accepted."""
    try:
        loaded = load_run_config([smoke], lines)
        config = loaded.run_config
        with loaded.explaining():
            with torch.device("meta"):
                step = build_step(config, VOCABULARY)
            config.allocator(config.context.tree)
            build_evaluations(config)
            build_task(config, step.model)
            build_schedule(config).factor(0, config.steps)
            param_groups(step, build_optimizer(config), config.optimizer_config)
            config.extreme_lengths if step.model.strategy.count else None  # noqa: B018 - it may raise
            if parameter_count(step) <= STEPPED and config.context.window <= 256 and step.model.strategy.count <= 4:
                run_step(config)
    except UserError as error:
        return not (error.message and error.remedy) and pytest.fail(f"without a remedy: {error}")
    return True


def run_step(config):
    """Run one step, forward and backward."""
    step = build_step(config, VOCABULARY)
    count = step.model.strategy.count
    tokens = torch.randint(0, VOCABULARY, (1, config.context.window + 1))
    step.begin_step(0.0)
    loss, _ = step(StepBatch(tokens, torch.arange(count)[None], config.variant_length(0) if count else 0))
    loss.backward()


def fuzz(smoke, number, examples):
    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bindings())
    def attempt(lines):
        results.append(build(smoke, lines))

    results = []
    attempt()
    return results


def test_bindings_are_accepted_or_refused_with_a_message(smoke):
    assert len(fuzz(smoke, 0, 10)) >= 10


@pytest.mark.matrix
def test_many_bindings_are_accepted_or_refused_with_a_message(smoke):
    end, results, number = time.monotonic() + float(os.environ.get("MCFRAME_FUZZ_SECONDS", "30")), [], 0
    while time.monotonic() < end:
        number += 1
        results += fuzz(smoke, number, 25)
    print(f"{len(results)} examples, {sum(results)} of them accepted")
