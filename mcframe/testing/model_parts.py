"""Requirements of all kinds that a training step calls: rows, random states, devices, copies, a real step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.testing.assertions import NotConforming, expect
from mcframe.testing.calls import Example, PluginCall, calls, make_call
from mcframe.testing.host_sync import no_host_sync, operations, random_state, random_states, same
from mcframe.testing.kinds import CALLED_IN_STEPS, MODEL_PARTS
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import PURE, requirement

SMALL = ContextTree(window=66, block_size=4, levels=2, slots=1, tail=9)


@requirement(
    "M1", "Equal inputs and seeds have equal results, and a call changes nothing else", *CALLED_IN_STEPS,
    over=calls, examples=6, after=("P6", "O1"),
)  # fmt: skip
def m1_pure(call: PluginCall) -> None:
    """In eval mode, after calls on other rows too. Inputs and the random states of torch, numpy and Python stay."""
    before = {name: tensor.clone() for name, tensor in call.inputs.items()}
    with random_states(1):
        state = random_state()
        first = call.run()
        expect(random_state() == state, "a global random state has advanced")
    changed = [name for name, tensor in call.inputs.items() if not torch.equal(tensor, before[name])]
    expect(not changed, f"it has written to {', '.join(changed)}")
    call.select(list(range(call.rows))[::-1]).run()
    with random_states(2):
        expect(same(first, call.run()), f"a second call with equal inputs returns something else ({call.tree})")


@requirement(
    "M2", "The result of a row does not depend on other rows", *CALLED_IN_STEPS,
    over=calls, examples=6, after=("P6", "O1", *PURE),
)  # fmt: skip
def m2_rows(call: PluginCall) -> None:
    """Neither on their number nor on their order."""
    every, backwards = call.run(), list(range(call.rows))[::-1]
    expect(same(call.select(backwards).run(), every[backwards]), "in another order, rows have other results")
    alone = call.select([0]).run()
    expect(same(alone, every[[0]]), "alone, a row has another result than among other rows")


@requirement(
    "M3", "It does not wait for the device and does not loop over rows or blocks", *CALLED_IN_STEPS,
    after=("P6", "O1"),
)  # fmt: skip
def m3_batched(plugin: PluginUnderTest) -> None:
    """No `.item()`, `if tensor` or indexing by a mask. Operations are counted for more rows and for more blocks."""
    call = make_call(plugin, Example(SMALL))
    call.run()  # values that depend on sizes alone may be cached
    with no_host_sync():
        result = call.run()
        if result.requires_grad:
            torch.autograd.backward(result.float().square().sum())
    few, more_rows = (operations(make_call(plugin, Example(SMALL, rows=rows)).run) for rows in (2, 8))
    # An empty remainder can save an operation or two; a loop adds at least one for each of the six rows.
    expect(more_rows < few + 6, f"8 rows took {more_rows} operations and 2 rows {few}")
    if plugin.kind == "loss":
        return  # its step has a tree of its own
    longer = (replace(SMALL, window=SMALL.window + extra) for extra in (64, 192))
    more, most = (operations(make_call(plugin, Example(tree, rows=2)).run) for tree in longer)
    # A search adds a step at each doubling, a loop twice as many as at the doubling before.
    loops = more >= few + 16 and most - more >= 1.5 * (more - few)
    expect(not loops, f"16, 32 and 64 blocks took {few}, {more} and {most} operations")


@requirement("M4", "It can be built on any device and works there", *MODEL_PARTS, "base", after=("M3",))
def m4_device(plugin: PluginUnderTest) -> None:
    """On the meta device, where `mcframe check` builds models, and on a GPU if there is one."""
    call = make_call(plugin, Example(SMALL))
    expected = call.run()
    plain = _plain_tensors(call.part)
    expect(not plain, f"{', '.join(plain)}: neither parameter nor buffer, so `Module.to` does not move it")
    for device in ("meta", "cuda") if torch.cuda.is_available() else ("meta",):
        part = plugin.build(SMALL, device=device)
        there = call.of(part).replacing(**{name: tensor.to(device) for name, tensor in call.inputs.items()})
        found = there.run()
        expect(found.device.type == device, f"on {device} the result is on {found.device.type}")
        expect(found.shape == expected.shape, f"on {device} the result has the shape {list(found.shape)}")


@requirement("M5", "It can be copied and pickled, and the copies work alike", *MODEL_PARTS, "base", after=(*PURE, "P5"))
def m5_copies(plugin: PluginUnderTest) -> None:
    """Loader processes, baselines and evaluations copy instances."""
    call = make_call(plugin, Example(SMALL))
    expected = call.run()
    ways: dict[str, Callable[[Any], Any]] = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda part: pickle.loads(pickle.dumps(part)),
    }
    for name, way in ways.items():
        try:
            other = way(call.part)
        except Exception as error:
            raise NotConforming(f"{name}: {type(error).__name__}: {error}") from error
        expect(same(call.of(other).run(), expected), f"{name}: the copy returns something else")


def _plain_tensors(part: object) -> list[str]:
    """Return the names of tensors among a network's attributes that `Module.to` does not move."""
    modules = part.named_modules() if isinstance(part, nn.Module) else ()
    return [
        f"{name}.{attribute}".lstrip(".")
        for name, module in modules
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
