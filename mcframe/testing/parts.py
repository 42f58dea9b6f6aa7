"""Clauses of all four kinds that a model is made of: rows, devices, random states, copies, and a real training step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.testing.examples import for_all
from mcframe.testing.host_sync import NoHostSync, NoReadingMethods, operations, random_state, random_states, same
from mcframe.testing.inputs import plain_trial, trials
from mcframe.testing.plugin_calls import PluginCall
from mcframe.testing.plugin_under_test import PARTS, PluginUnderTest
from mcframe.testing.requirements import STEADY, NotConforming, expect, requirement

SMALL = ContextTree(window=66, block_size=4, levels=2, slots=1, tail=9)


@requirement("M1", "Its inputs are as they were afterwards", *PARTS, after=("P9",))
def m1_inputs(plugin: PluginUnderTest) -> None:
    """They belong to the step, which goes on using them."""

    def check(trial: PluginCall) -> None:
        before = {name: tensor.clone() for name, tensor in trial.inputs.items()}
        trial.run()
        changed = [name for name, tensor in trial.inputs.items() if not torch.equal(tensor, before[name])]
        expect(not changed, f"it has written to {', '.join(changed)}")

    for_all(trials(plugin), check)


@requirement(
    "M2", "In eval mode equal inputs and seeds give equal results, whatever was called before", *PARTS, after=("M1",)
)
def m2_deterministic(plugin: PluginUnderTest) -> None:
    """A call on other rows lies between the two that are compared."""

    def check(trial: PluginCall) -> None:
        with random_states(1):
            first = trial.run()
        trial.chosen(list(range(trial.rows))[::-1]).run()
        with random_states(1):
            second = trial.run()
        expect(same(first, second), f"a second call with the same inputs gave something else ({trial.tree})")

    for_all(trials(plugin), check)


@requirement("M3", "In eval mode it neither reads nor moves a global random state", *PARTS, after=("M2",))
def m3_random_state(plugin: PluginUnderTest) -> None:
    """Of torch, numpy and Python. Ranks, micro-batches and resumption must not change a result."""

    def check(trial: PluginCall) -> None:
        with random_states(1):
            before = random_state()
            first = trial.run()
            expect(random_state() == before, "a global random state has moved")
        with random_states(2):
            expect(same(first, trial.run()), "the result depends on a global random state")

    for_all(trials(plugin), check)


@requirement(
    "M4", "A row's result depends on no other row: not on how many there are, nor on their order", *PARTS, after=STEADY
)
def m4_rows(plugin: PluginUnderTest) -> None:
    """Each row alone, and all of them in another order."""

    def check(trial: PluginCall) -> None:
        every = trial.run()
        backwards = list(range(trial.rows))[::-1]
        expect(same(trial.chosen(backwards).run(), every[backwards]), "in another order, rows have other results")
        for row in backwards:
            expect(
                same(trial.chosen([row]).run(), every[[row]]), f"row {row} alone has another result than among others"
            )

    for_all(trials(plugin), check)


@requirement("M5", "Nothing is read back to the host", *PARTS, after=("P9",))
def m5_host(plugin: PluginUnderTest) -> None:
    """No `.item()`, no `if tensor`, no indexing by a mask: each waits for the device."""
    trial = plain_trial(plugin, SMALL)
    trial.run()  # what depends on sizes alone may be made once
    with NoHostSync(), NoReadingMethods():
        result = trial.run()
        if result.requires_grad:
            torch.autograd.backward(result.float().square().sum())


@requirement("M6", "Nothing loops over rows or blocks", *PARTS, after=("P9",))
def m6_loops(plugin: PluginUnderTest) -> None:
    """Operations are counted: no more of them for more rows, and not in proportion to blocks."""
    few, more_rows = (operations(plain_trial(plugin, SMALL, rows=rows).run) for rows in (2, 8))
    # A remainder may be empty and save an operation or two; a loop makes at least one for each of the six more.
    expect(more_rows < few + 6, f"8 rows took {more_rows} operations and 2 rows {few}")
    more, most = (
        operations(plain_trial(plugin, replace(SMALL, window=SMALL.window + extra), rows=2).run) for extra in (64, 192)
    )
    # Halving again and again takes a few operations for every doubling, a loop twice as many as for the one before.
    loops = more >= few + 16 and most - more >= 1.5 * (more - few)
    expect(not loops, f"16, 32 and 64 blocks took {few}, {more} and {most} operations")


@requirement("M7", "It is made on any device and works there", *PARTS, after=("M5",))
def m7_device(plugin: PluginUnderTest) -> None:
    """On the meta device, where `mcframe check` builds models, and on a GPU where there is one."""
    trial = plain_trial(plugin, SMALL)
    wanted = trial.run()
    stay = _plain_tensors(trial.part)
    expect(not stay, f"{', '.join(stay)}: neither parameter nor buffer, so it stays where it was made")
    for device in ("meta", "cuda") if torch.cuda.is_available() else ("meta",):
        part = plugin.build(SMALL, device=device)
        there = trial.of(part).given(**{name: tensor.to(device) for name, tensor in trial.inputs.items()})
        found = there.run()
        expect(found.device.type == device, f"on {device} the result lies on {found.device.type}")
        expect(found.shape == wanted.shape, f"on {device} the result has the shape {list(found.shape)}")


@requirement("M8", "It can be copied and pickled, and the copies do the same", *PARTS, after=(*STEADY, "P7"))
def m8_copies(plugin: PluginUnderTest) -> None:
    """Processes that load data, twins and evaluations copy what a factory made."""
    trial = plain_trial(plugin, SMALL)
    wanted = trial.run()
    ways: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": _pickled}
    for what, copied in ways.items():
        try:
            other = copied(trial.part)
        except Exception as error:  # whatever keeps it from being copied is the finding
            raise NotConforming(f"{what}: {type(error).__name__}: {error}") from error
        expect(same(trial.of(other).run(), wanted), f"{what}: the copy gives something else")


def _pickled(part: Any) -> Any:
    return pickle.loads(pickle.dumps(part))


def _plain_tensors(part: object) -> list[str]:
    """Tensors among the attributes of a network that `Module.to` does not know."""
    modules = part.named_modules() if isinstance(part, nn.Module) else ()
    return [
        f"{name}.{attribute}".lstrip(".")
        for name, module in modules
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
