"""Our plug-ins have gin files that select them and name all their parameters; losses may be in `run.losses` alone."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.training.build import build_step
from mcframe.training.train_step import StepBatch

GIN = Path(__file__).parents[3] / "gin"
KINDS = ("allocator", "gistnet", "lensnet", "loss", "variants")
PRESETS = sorted(f"{kind}/{file.stem}" for kind in KINDS for file in (GIN / kind).glob("*.gin"))


def loaded(preset, base="smoke.gin"):
    return load_run_config([base, f"{preset}.gin"], ["context.window = 64", "gpt.depth = 1"])


def test_every_plug_in_of_ours_has_one_and_no_other_file_is_there():
    offered = loaded("allocator/greedy").registry.implementations
    ours = {
        f"{kind}/{name}"
        for kind in KINDS
        for name, entry in offered[kind].items()
        if entry.factory.__module__.startswith("mcframe_plugins.")
    }
    assert set(PRESETS) <= ours
    assert {name for name in ours - set(PRESETS) if not name.startswith("loss/")} == set()


@pytest.mark.parametrize("preset", PRESETS)
def test_it_selects_its_plug_in_and_names_all_its_parameters(preset):
    kind, name = preset.split("/")
    text = (GIN / f"{preset}.gin").read_text("utf-8")
    assert text.startswith("# ")
    chosen = f"run.extra_losses = [@loss.{name}]" if kind == "loss" else f"run.{kind} = @{kind}.{name}"
    assert f"{chosen}\n" in text
    shown = CliRunner().invoke(app, ["plugins", "show", f"{kind}.{name}"])
    assert shown.exit_code == 0, shown.output
    wanted = re.findall(rf"^({kind}\.{name}\.\w+) =", shown.output, re.MULTILINE)
    assert re.findall(rf"^({kind}\.{name}\.\w+) =", text, re.MULTILINE) == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_and_a_refocus_behind_smoke(preset):
    run_config = loaded(preset).run_config
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
    if not model.strategy.count:
        assert preset == "variants/none"
        return
    assert torch.isfinite(metrics.means["mc/lens_loss"]).all()
    for name, parameter in step.named_parameters():
        assert parameter.grad is not None, name
    with torch.no_grad():
        focus, _ = model.refocus(tokens[:, :-1], run_config.allocator(tree), budget, seeds[:, 0])
        proposed = model.propose(tokens[:, :-1], seeds, length)
    for each in (focus, proposed):
        assert bool(is_valid(each, tree).all())
    assert bool((lengths(focus, tree) <= budget).all())
    assert bool((lengths(proposed, tree) == length).all())


@pytest.mark.parametrize("preset", PRESETS)
def test_check_finds_nothing_wrong_with_it_behind_quickstart(preset, tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text(f"include 'quickstart.gin'\ninclude '{preset}.gin'\n", "utf-8")
    checked = CliRunner().invoke(app, ["check", str(file)])
    assert checked.exit_code == 0, checked.output
    assert preset.replace("/", ".") in checked.output
    unused = re.findall(r"bound but unused: (\S+)", checked.output)
    assert not [binding for binding in unused if binding.startswith(preset.replace("/", "."))]
