"""Gin files of first-party plug-ins select them and name all their parameters; a plug-in needs none."""

import re
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.configurables import Configurable
from mcframe.config.parameters import parameters_of
from mcframe.config.run_config import all_plugins, load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.training.build import build_step
from mcframe.training.train_step import StepBatch

GIN = Path(__file__).parents[3] / "gin"
KINDS = ("allocator", "gistnet", "lensnet", "loss", "variants")
NO_VARIANTS = "variants/none"
PRESETS = sorted(f"{kind}/{file.stem}" for kind in KINDS for file in (GIN / kind).glob("*.gin"))
OF_KINDS = [[name for name in PRESETS if name.startswith(f"{kind}/") and name != NO_VARIANTS] for kind in KINDS]
COMBINED = [[name for name in row if name] for row in zip_longest(*OF_KINDS)]
"""Sets of presets, at most one of each kind, that contain every preset but `NO_VARIANTS`."""
EVERY_SET = pytest.mark.parametrize("presets", [*COMBINED, [NO_VARIANTS]], ids=" ".join)


def test_every_preset_is_one_of_a_first_party_plugin():
    first_party = {
        f"{kind}/{name}"
        for kind in KINDS
        for name, entry in all_plugins().implementations[kind].items()
        if entry.factory.__module__.startswith("mcframe_plugins.")
    }
    assert set(PRESETS) <= first_party


def test_preset_selects_its_plugin_and_names_all_its_parameters():
    registered = all_plugins().implementations
    for preset in PRESETS:
        kind, name = preset.split("/")
        text = (GIN / f"{preset}.gin").read_text("utf-8")
        assert text.startswith("# ")
        selection = f"run.extra_losses = [@loss.{name}]" if kind == "loss" else f"run.{kind} = @{kind}.{name}"
        assert f"{selection}\n" in text
        parameters = parameters_of(Configurable(f"{kind}.{name}", registered[kind][name].factory, kind))
        expected = [each.binding for each in parameters]
        assert re.findall(rf"^({kind}\.{name}\.\w+) =", text, re.MULTILINE) == expected


@EVERY_SET
def test_step_and_refocus_with_smoke(presets):
    sizes = ["context.window = 64", "gpt.depth = 1"]
    run_config = load_run_config(["smoke.gin", *(f"{preset}.gin" for preset in presets)], sizes).run_config
    torch.manual_seed(0)
    step = build_step(run_config, 257)
    model, budget = step.model, 40
    tree = model.tree
    tokens = torch.randint(0, 257, (2, tree.window + 1))
    seeds = variant_seeds(0, torch.arange(2), model.strategy.count)
    length = tree.reachable(budget)[0]
    loss, metrics = step(StepBatch(tokens, seeds, length))
    loss.backward()
    assert torch.isfinite(loss)
    if presets == [NO_VARIANTS]:
        assert model.strategy.count == 0
        return
    assert torch.isfinite(metrics.means["mc/lens_loss"]).all()
    assert [name for name, parameter in step.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        focus, _ = model.refocus(tokens[:, :-1], run_config.allocator(tree), budget, seeds[:, 0])
        proposed = model.propose(tokens[:, :-1], seeds, length)
    for each in (focus, proposed):
        assert bool(is_valid(each, tree).all())
    assert bool((lengths(focus, tree) <= budget).all())
    assert bool((lengths(proposed, tree) == length).all())


@EVERY_SET
def test_quickstart_builds_preset_and_reads_all_its_bindings(presets):
    loaded = load_run_config(["quickstart.gin", *(f"{preset}.gin" for preset in presets)], [])
    with torch.device("meta"):
        build_step(loaded.run_config, 257)
    loaded.run_config.allocator(loaded.run_config.context.tree)
    names = tuple(preset.replace("/", ".") for preset in presets)
    assert [each.key for each in loaded.config.unused() if each.key.startswith(names)] == []


def test_check_prints_the_plugin_of_a_preset(tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text(f"include 'quickstart.gin'\ninclude '{NO_VARIANTS}.gin'\n", "utf-8")
    checked = CliRunner().invoke(app, ["check", str(file)])
    assert checked.exit_code == 0, checked.output
    assert "variants.none" in checked.output
