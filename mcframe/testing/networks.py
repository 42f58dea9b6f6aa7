"""Clauses of GistNets and LensNets as modules: building, saving, compiling, and learning."""

from __future__ import annotations

import io

import torch
from torch import nn

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import TrainableModule
from mcframe.testing.host_sync import random_states, same
from mcframe.testing.inputs import gist_trial, lens_trial, plain_trial, stirred
from mcframe.testing.plugin_calls import PluginCall
from mcframe.testing.plugin_under_test import NETWORKS, PLAIN, PluginUnderTest
from mcframe.testing.requirements import STEADY, expect, requirement
from mcframe.testing.training_step import without_gradient

TREE = ContextTree(window=66, block_size=4, levels=2, slots=2, tail=9)


@requirement("N1", "Built under equal seeds it has equal parameters", *NETWORKS, after=("P9",))
def n1_seed(plugin: PluginUnderTest) -> None:
    """Under torch's seed, which the framework sets; a twin starts from the same place."""
    built = []
    for others in (1, 2):
        with random_states(others):
            built.append(plugin.build(TREE, seed=5))
    one, other = (each.state_dict() for each in built)
    expect(one.keys() == other.keys(), "a second one has other parameters")
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    expect(not different, f"under the same seed {', '.join(different)} differ")


@requirement("N2", "What it knows is in its state dict", *NETWORKS, after=STEADY)
def n2_state_dict(plugin: PluginUnderTest) -> None:
    """Saved, loaded strictly into another one, it gives the same."""
    trial = plain_trial(plugin, TREE)
    wanted = trial.run()
    file = io.BytesIO()
    torch.save(trial.part.state_dict(), file)
    file.seek(0)
    other = stirred(plugin.build(TREE, seed=8), 9)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expect(same(trial.of(other).run(), wanted), "another one that loads its state dict gives something else")


@requirement("N3", "It compiles as one graph", *NETWORKS, after=("M5", *STEADY))
def n3_compiles(plugin: PluginUnderTest) -> None:
    """`torch.compile(fullgraph=True)`: no break, and the same result."""
    trial = plain_trial(plugin, TREE)
    wanted = trial.run()
    torch._dynamo.reset()
    compiled = torch.compile(trial.part, fullgraph=True, backend="eager")
    expect(same(trial.of(compiled).run(), wanted), "compiled, it gives something else")


@requirement("N4", "It works in bfloat16", *NETWORKS, after=("P9",))
def n4_bfloat16(plugin: PluginUnderTest) -> None:
    """As a run in bfloat16 makes it: parameters and embeddings alike."""
    trial = plain_trial(plugin, TREE)
    inputs = {name: tensor.bfloat16() for name, tensor in trial.inputs.items() if name in ("children", "embeddings")}
    result = trial.of(trial.part.bfloat16()).given(**inputs).run()
    expect(bool(result.isfinite().all()), "the result is not finite")


@requirement("N5", "Every parameter takes part in every step", *NETWORKS, needs="parameters", after=("P9",))
def n5_used(plugin: PluginUnderTest) -> None:
    """At ZeRO 3 a parameter without a gradient would be moved by an old one."""
    part = stirred(plugin.build(TREE), 0).train()
    for what, steps in _steps(plugin).items():
        part.zero_grad(set_to_none=True)
        for trial in steps:
            result = trial.of(part).run()
            if result.requires_grad:
                weights = torch.linspace(0.5, 1.5, result.numel()).view_as(result)
                torch.autograd.backward((result.float() * weights).sum())
        unused = without_gradient(part)
        expect(not unused, f"{what}: no gradient reaches {', '.join(unused)}")


def _steps(plugin: PluginUnderTest) -> dict[str, list[PluginCall]]:
    """The calls that different kinds of step make."""
    if plugin.kind == "gistnet":
        return {"over all levels": [gist_trial(plugin, TREE, 1, lod=lod) for lod in (1, 2)]}
    return {
        f"on {context} contexts": [lens_trial(plugin, TREE, 1, context=context)]
        for context in ("raw", "equal", "padded")
    }


@requirement(
    "N6",
    "Tables and thin maps are in no group of matrices, so that AdamW trains them and not Muon",
    *NETWORKS,
    needs="parameters",
    after=("P9",),
)
def n6_param_groups(plugin: PluginUnderTest) -> None:
    """Muon is for maps between wide spaces; `param_groups` of the module declares the others as embeddings."""
    for tree in (TREE, PLAIN):  # with one slot, what has a row for every slot is thin
        wrong = _tables_among_matrices(plugin.build(tree))
        expect(not wrong, f"with {tree.slots} slot(s) Muon would train {', '.join(wrong)}")


def _tables_among_matrices(part: TrainableModule) -> list[str]:
    matrices = {id(each) for group in part.param_groups() if group.role == "matrix" for each in group.parameters}
    tables = {id(module.weight) for module in part.modules() if isinstance(module, nn.Embedding)}
    return [
        name
        for name, parameter in part.named_parameters()
        if id(parameter) in matrices
        and (id(parameter) in tables or (parameter.dim() == 2 and min(parameter.shape) == 1))
    ]
