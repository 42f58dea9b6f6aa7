"""The panels are those of the catalogue, and both dashboards are made of them."""

import re
import shlex

import pytest

from mcframe.metrics.catalogue import CATALOGUE, describe
from mcframe.metrics.dashboard import GROUPS, Panel, matching, tensorboard_layout
from mcframe.metrics.wandb_workspace import workspace_script

PANELS = [panel for panels in GROUPS.values() for panel in panels]
NAMES = ["mc/lod_delta/2", "mc/lod_delta/10", "mc/lod_delta/1", "mc/lod_delta", "val/bpb", "train/loss", "mc/a.b"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_metric_of_a_panel_is_in_the_catalogue(panel):
    known = {metric.name: metric for metric in CATALOGUE}
    assert set(panel.metrics) <= known.keys()
    units = {known[name].unit for name in panel.metrics}
    assert len(units) == 1, "curves of one panel have one unit"
    (unit,) = units
    in_title = re.search(r"\(([^()]*)\)$", panel.title)
    assert unit in ("1", "its own", "pairs", "entries", "tokens") or (in_title and in_title[1] == unit)


def test_metrics_of_the_founding_review_have_a_panel():
    shown = {name for panel in PANELS for name in panel.metrics}
    names = """mc/other_ms mc/variant_pack_ms mc/lod_delta/{lod} mc/adv_delta_mean mc/adv_delta_p95 mc/adv_delta_std
        mc/preference_corr_mean mc/preference_agreement mc/pref_score_corr mc/pref_span_corr mc/policy_score_abs_mean
        train/tokens_per_step train/mfu train/tok_per_sec mc/tail_delta val/bpb train/loss_lod0 mc/wc_length"""
    assert set(names.split()) <= shown
    assert len({panel.title for panel in PANELS}) == len(PANELS)


def test_a_panel_matches_the_metrics_that_it_names_and_no_other():
    panel = Panel("a", ("mc/lod_delta/{lod}", "val/bpb"))
    assert [name for name in NAMES if re.search(panel.regex, name)] == [
        "mc/lod_delta/2", "mc/lod_delta/10", "mc/lod_delta/1", "val/bpb",
    ]  # fmt: skip
    assert matching(panel.metrics, NAMES) == ["mc/lod_delta/1", "mc/lod_delta/2", "mc/lod_delta/10", "val/bpb"]
    for each in PANELS:
        for name in (n for n in each.metrics if "{" not in n):
            assert re.search(each.regex, name)
            assert not re.search(each.regex, name + "s")
            assert describe(name).name == name


def test_the_layout_has_a_chart_for_every_panel():
    layout = tensorboard_layout()
    assert list(layout) == list(GROUPS)
    for group, panels in GROUPS.items():
        assert {title: tags for title, (_, tags) in layout[group].items()} == {p.title: [p.regex] for p in panels}


def script(*arguments):
    """Return the definitions of the workspace's program, which is not run."""
    scope = {"__name__": "imported"}
    code = re.sub(r"^import wandb_workspaces.*$", "", workspace_script(*arguments), flags=re.M)
    exec(code, scope)
    return scope


def test_the_workspace_has_all_panels_or_those_of_a_run():
    every = script("a.py")
    assert {name: [title for title, _ in panels] for name, panels in every["SECTIONS"].items()} == {
        group: [panel.title for panel in panels] for group, panels in GROUPS.items()
    }
    assert every["AXIS"] == "train/tokens"
    assert "mc/lens_score/1" in every["HISTOGRAMS"]
    ours = script("a.py", [*NAMES, "mc/lens_score/0"], "The dashboard of mine")
    assert ours["SECTIONS"] == {
        "Loss and validation": [("Loss (nats)", ["train/loss"]), ("Validation (bits/byte)", ["val/bpb"])],
        "Cost of gists": [
            ("ΔNLL after a span, by its LOD (nats)", ["mc/lod_delta/1", "mc/lod_delta/2", "mc/lod_delta/10"])
        ],
    }
    assert ours["HISTOGRAMS"] == ["mc/lens_score/0"]
    assert ours["__doc__"].startswith("The dashboard of mine on wandb.")


@pytest.mark.parametrize("name", ['a"""\nraise SystemExit("run")\n"""', "b\\", "c\\N{x}", "{d}", "e'\\"])
def test_names_of_folders_are_escaped(name):
    scope = script(f"{name}.py", None, f"The dashboard of {name}")
    assert scope["__doc__"].startswith(f"The dashboard of {name} on wandb.")
    assert shlex.quote(f"{name}.py") in scope["__doc__"]
