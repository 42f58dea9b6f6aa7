"""Each rule finds what it is for and keeps silent on a healthy run; the founding review's run is read rightly."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from mcframe.review.apply_rules import RULES, apply_rules
from mcframe.review.finding import Case, Finding
from mcframe.review.record import read_run
from mcframe.review.rules import read_rules
from mcframe.review.run_facts import level_predicts_preferences
from tests.support.synthetic_runs import CONFIG, DIP, STEPS, healthy, like_the_seed, noise, write_run

GOOD_GISTS = {
    f"eval/gist_quality/lod1_at_75/gist_minus/drop/tail{end}": v
    for end, v in (("", -0.2), ("_low", -0.3), ("_high", -0.1))
}


def findings(run, baseline=None, rules=None) -> dict[str, Finding]:
    case = Case(read_run(run), rules or read_rules(), read_run(baseline) if baseline else None)
    return {finding.rule: finding for finding in apply_rules(case).findings}


def test_the_run_of_the_founding_review(tmp_path):
    found = findings(write_run(tmp_path / "run10", like_the_seed()))
    dip = found["throughput_dip"]
    assert "mc/variant_pack_ms" in dip.title
    fast, slow = (float(rate.replace(",", "")) for rate in re.findall(r"from ([\d,]+) to ([\d,]+) tok", dip.title)[0])
    assert fast == pytest.approx(3900, rel=0.01)
    assert slow == pytest.approx(3100, rel=0.01)
    explained = re.findall(r"explains (\d+) %", " ".join(dip.evidence))
    assert 90 <= float(explained[0]) <= 110
    assert dip.plot is not None
    assert dip.plot.shade is not None
    assert np.allclose(np.array(dip.plot.shade) / 12288, (DIP[0] + 1, DIP[1]), atol=3)
    assert "0.0041" in found["low_mfu"].title
    assert "0.41 %" in found["low_mfu"].title
    assert "5.5 nats" in found["implausible_delta"].title
    assert any(re.search(r"mc/lod_loss/1 is \+1\.[012]", line) for line in found["implausible_delta"].evidence)
    assert "mc/lod_delta/1" in found["rising_lod_delta"].title
    assert "slow_pack" in found
    assert found.keys() == {"throughput_dip", "low_mfu", "implausible_delta", "rising_lod_delta", "slow_pack"}


def test_the_seeds_timers_do_not_account_for_its_step(tmp_path):
    """The founding review took 56 x 2048 tokens a step; at 3.9k tokens/s that is 29 s, not the 3.1 s of its timers."""
    found = findings(write_run(tmp_path / "run10", like_the_seed(per_step=114688)))
    summed, step = (float(ms.replace(",", "")) for ms in re.findall(r"([\d,]+) ms", found["time_unaccounted"].title))
    assert 3100 < summed < 3500
    assert 29_000 < step < 32_000


def with_parts_of_other(figures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The run's timers as mcframe logs them: the remainder's parts, and the step as a whole."""
    shares = {"data": 0.02, "base": 0.2, "metrics": 0.03, "backward": 0.65, "optimizer": 0.1}
    rng = np.random.default_rng(7)
    figures |= {
        f"train/{name}_ms": share * figures["mc/other_ms"] * (1 + 0.02 * noise(rng, STEPS))
        for name, share in shares.items()
    }
    figures["train/step_ms"] = figures["mc/controller_ms"] + figures["mc/other_ms"]
    return figures


def test_a_dip_is_blamed_on_a_part_and_not_on_the_remainder_or_the_step(tmp_path):
    figures = healthy()
    figures["mc/other_ms"][slice(*DIP)] += 90.0
    figures = with_parts_of_other(figures)
    slower = slice(*DIP)
    for name, share in (("data", 0.02), ("backward", 0.65), ("base", 0.2), ("metrics", 0.03), ("optimizer", 0.1)):
        figures[f"train/{name}_ms"][slower] += (90.0 if name == "data" else 0.0) - 90.0 * share
    figures["train/tok_per_sec"] = 1000 * 12288 / figures["train/step_ms"]
    found = findings(write_run(tmp_path / "run", figures))
    assert found.keys() == {"throughput_dip"}
    assert "most likely timer: train/data_ms" in found["throughput_dip"].title


def test_the_parts_of_the_remainder_must_sum_to_the_step(tmp_path):
    """`mc/other_ms` is what is left of the step, so with it the sum could not be wrong."""
    figures = with_parts_of_other(healthy())
    assert not findings(write_run(tmp_path / "whole", figures))
    figures["train/backward_ms"] /= 2
    (found,) = findings(write_run(tmp_path / "half", figures)).values()
    assert found.rule == "time_unaccounted"
    assert "train/backward" in found.evidence[0]


@pytest.mark.parametrize("many", [(STEPS, 0.3, 20), (60, 0.0, 20), (40, 0.6, 20), (1500, 0.6, 3)], ids=str)
def test_a_healthy_run_yields_nothing(tmp_path, many):
    n, rho, seeds = many
    for seed in range(seeds):
        run = write_run(tmp_path / str(seed), healthy(seed, n, rho), evaluation=GOOD_GISTS)
        baseline = write_run(tmp_path / f"{seed}baseline", healthy(seed + 1000, n, rho))
        assert findings(run, baseline) == {}


def test_every_rule_applies_to_a_healthy_run(tmp_path):
    run = write_run(tmp_path / "run", healthy(), evaluation=GOOD_GISTS, provenance={"device": "NVIDIA H200"})
    baseline = read_run(write_run(tmp_path / "baseline", healthy(1)))
    outcomes = apply_rules(Case(read_run(run), read_rules(), baseline))
    assert outcomes.findings == []
    assert outcomes.silent == list(RULES)
    assert outcomes.skipped == {}


def step_up(values, by):
    changed = values.copy()
    changed[90:130] += by
    return changed


FIRING = {
    "throughput_dip": {"train/tok_per_sec": lambda v: step_up(v, -0.15 * v.mean())},
    "slow_pack": {"mc/variant_pack_ms": lambda v: v + 8},
    "time_unaccounted": {"mc/other_ms": lambda v: v / 2},
    "low_mfu": {"train/mfu": lambda v: v / 20},
    "mfu_unit": {"train/mfu": lambda v: v * 100},
    "rising_lod_delta": {"mc/lod_delta/1": lambda v: v + np.linspace(0, 0.4, len(v))},
    "implausible_delta": {"mc/adv_delta_mean": lambda v: v + 5},
    "lens_uncorrelated": {"mc/preference_corr_mean": lambda v: v - v[85:].mean() + 0.005},
    "stalled_loss": {"train/loss_lod0": lambda v: np.where(np.arange(len(v)) < 80, v, v[80] + v - v)},
    "spiking_loss": {"train/loss_lod0": lambda v: np.where(np.arange(len(v)) == 120, v + 2, v)},
    "unmoved_weights": {"train/update_ratio/lensnet.read": lambda v: 0.0 * v},
    "not_finite": {"train/grad_norm": lambda v: np.where(np.arange(len(v)) == 7, np.nan, 1.0)},
}


@pytest.mark.parametrize("rule", FIRING)
def test_a_rule_finds_what_it_is_for(tmp_path, rule):
    figures = healthy(3)
    for name, change in FIRING[rule].items():
        figures[name] = change(figures.get(name, np.ones(STEPS)))
    found = findings(write_run(tmp_path / "run", figures))
    assert rule in found
    assert found[rule].evidence
    assert found[rule].step


def test_a_dip_without_a_timer_that_rose_names_none(tmp_path):
    figures = healthy(3)
    figures["train/tok_per_sec"] = step_up(figures["train/tok_per_sec"], -5000)
    assert "none of the timers rose" in findings(write_run(tmp_path / "a", figures))["throughput_dip"].title
    bare = {name: values for name, values in figures.items() if not name.endswith("_ms")}
    assert "no timer in the log" in findings(write_run(tmp_path / "b", bare))["throughput_dip"].title


def test_a_sum_of_timers_is_never_the_cause_of_a_dip(tmp_path):
    """The step and the remainder rise by as much as the part that rose, and by its noise more."""
    figures = like_the_seed()
    parts = {"train/backward_ms": 1500.0, "train/base_ms": 600.0, "train/optimizer_ms": 300.0}
    for name, ms in parts.items():
        figures[name] = np.full(STEPS, ms) + noise(np.random.default_rng(len(name)), STEPS)
    figures["train/optimizer_ms"] = figures["train/optimizer_ms"] + figures["mc/variant_pack_ms"]
    figures["mc/variant_pack_ms"] = figures["mc/variant_pack_ms"] * 0 + 4
    figures["mc/other_ms"] = sum(figures[name] for name in parts) + 1
    figures["train/step_ms"] = figures["mc/other_ms"] + 719.0
    found = findings(write_run(tmp_path / "run", figures))
    assert "most likely timer: train/optimizer_ms" in found["throughput_dip"].title


@pytest.mark.parametrize("larger", ["mc/variant_pack_ms", "mc/lens_ms"])
def test_of_two_timers_that_rose_the_larger_rise_is_named(tmp_path, larger):
    figures = healthy(3)
    for name in ("mc/variant_pack_ms", "mc/lens_ms"):
        figures[name][slice(*DIP)] += 80.0 if name == larger else 30.0
    step = sum(figures[f"mc/{part}_ms"] for part in ("build", "variant", "variant_pack", "lens", "other"))
    figures["train/tok_per_sec"] = 1000 * 12288 / step
    found = findings(write_run(tmp_path / "run", figures))
    assert f"most likely timer: {larger}" in found["throughput_dip"].title


def test_a_single_slow_interval_is_no_dip(tmp_path):
    figures = healthy(3)
    figures["train/tok_per_sec"][50] /= 3
    assert "throughput_dip" not in findings(write_run(tmp_path / "run", figures))


def test_a_loss_that_rises_is_told(tmp_path):
    figures = healthy(3)
    figures["train/loss_lod0"] += np.maximum(0, np.linspace(-1, 2, STEPS))
    assert "rises" in findings(write_run(tmp_path / "run", figures))["stalled_loss"].title


def test_a_loss_that_flattens_in_the_warm_down_is_not_called_stalled(tmp_path):
    figures = healthy(3)
    figures["train/lr"] = np.where(np.arange(STEPS) < 85, 1.0, 0.01)
    figures["train/loss_lod0"][85:] = figures["train/loss_lod0"][84]
    assert "stalled_loss" not in findings(write_run(tmp_path / "run", figures))


def test_a_module_that_stopped_moving_is_told_with_its_last_step(tmp_path):
    figures = healthy(3)
    figures["train/update_ratio/lensnet.read"][60:] = 0.0
    found = findings(write_run(tmp_path / "run", figures))["unmoved_weights"]
    assert found.title == "Weights do not move: lensnet.read."
    assert "last up to step 60" in found.evidence[0]
    assert found.plot is not None
    assert found.plot.metrics == ("train/update_ratio/lensnet.read", "train/update_ratio/gpt.blocks.0")


def test_a_module_that_rested_for_some_intervals_is_not_called_unmoved(tmp_path):
    figures = healthy(3)
    figures["train/update_ratio/lensnet.read"][100:168] = 0.0
    assert "unmoved_weights" not in findings(write_run(tmp_path / "run", figures))


def test_where_nothing_moves_the_learning_rate_is_looked_at(tmp_path):
    figures = healthy(3)
    for name in figures:
        if name.startswith("train/update_ratio/") or name == "train/lr":
            figures[name] = np.zeros(STEPS)
    found = findings(write_run(tmp_path / "run", figures))["unmoved_weights"]
    assert found.title == "No weights move at all."
    assert "train/lr is 0" in found.evidence[-1]


def test_gists_that_do_no_better_than_dropping(tmp_path):
    bad = {**GOOD_GISTS, "eval/gist_quality/lod1_at_75/gist_minus/drop/tail_high": 0.01}
    found = findings(write_run(tmp_path / "run", healthy(), evaluation=bad))
    assert "1 of 1 controls" in found["gist_no_better"].title


@pytest.mark.parametrize("change", ["clock", "seed", "text"])
def test_a_baseline_that_read_other_tokens(tmp_path, change):
    run = write_run(tmp_path / "run", healthy())
    config = {**CONFIG, **{"seed": {"run.seed": "1"}, "text": {"run.text": "@text.files"}}.get(change, {})}
    baseline = write_run(tmp_path / "baseline", healthy(per_step=8192 if change == "clock" else 12288), config=config)
    found = findings(run, baseline)
    assert {"clock": "8,192", "seed": "run.seed", "text": "run.text"}[change] in " ".join(
        found["misaligned_tokens"].evidence
    )


def test_clocks_that_part_midway_are_seen_without_configurations(tmp_path):
    run = write_run(tmp_path / "run", healthy(), config=None)
    baseline = write_run(tmp_path / "baseline", healthy(), config=None)
    assert findings(run, baseline) == {}
    lines = (baseline / "metrics.jsonl").read_text().splitlines()
    late = [line.replace('"step": ', '"step": 1') if '"step": 1' in line else line for line in lines]
    (baseline / "metrics.jsonl").write_text("\n".join(late) + "\n")
    assert "misaligned_tokens" in findings(run, baseline)


def test_mfu_of_forty_one_per_cent_that_the_speed_contradicts(tmp_path):
    """run10's own telemetry: 0.41, meant as per cent. At 3.9k tokens/s of 1 GFLOP an H100 does 0.4 %."""
    figures = like_the_seed()
    figures["train/mfu"] = np.full(STEPS, 0.41) + 0.001 * noise(np.random.default_rng(0), STEPS)
    run = write_run(tmp_path / "run", figures, provenance={"machine": {"device": "NVIDIA H100 80GB HBM3"}})
    assert "per cent" in findings(run)["mfu_unit"].title
    figures["train/mfu"] /= 100
    assert "mfu_unit" not in findings(
        write_run(tmp_path / "right", figures, provenance={"machine": {"device": "NVIDIA H100 80GB HBM3"}})
    )


def test_of_several_devices_each_has_its_peak(tmp_path):
    """0.05 is less than 30 times what the plain model reaches on one device at this speed, and far more on four."""
    figures = like_the_seed()
    figures["train/mfu"] = np.full(STEPS, 0.05) + 0.001 * noise(np.random.default_rng(0), STEPS)
    for ranks, found in ((1, False), (4, True)):
        machine = {"device": "NVIDIA H100 80GB HBM3", "ranks": ranks}
        run = write_run(tmp_path / str(ranks), figures, provenance={"machine": machine})
        assert ("mfu_unit" in findings(run)) == found


def test_packing_on_a_cpu_is_not_judged_by_the_limit_of_a_gpu(tmp_path):
    figures = healthy(3)
    figures["mc/variant_pack_ms"] += 50
    run = write_run(tmp_path / "run", figures, provenance={"machine": {"device": "cpu"}})
    assert "slow_pack" in apply_rules(Case(read_run(run), read_rules())).skipped


def test_where_the_level_of_detail_gives_preferences_away_the_correlation_of_gists_is_judged(tmp_path):
    figures = healthy()
    figures["mc/pref_score_corr"] = 0.05 * noise(np.random.default_rng(1), STEPS)
    config = {key: value for key, value in CONFIG.items() if key != "lens_targets.sides"}
    assert (
        "mc/pref_score_corr"
        in findings(write_run(tmp_path / "a", figures, config=config))["lens_uncorrelated"].evidence[0]
    )
    assert "lens_uncorrelated" not in findings(write_run(tmp_path / "b", figures))


def test_the_limit_of_a_plausible_delta_follows_the_vocabulary(tmp_path):
    figures = healthy()
    figures["mc/adv_delta_mean"] += 2.5
    small = {**CONFIG, "run.tokenizer": "@tokenizer.bytes"}
    small.pop("tokenizer.bpe.vocab_size")
    assert 0.4 * math.log(257) < 2.7 < 0.4 * math.log(65536)
    assert "implausible_delta" in findings(write_run(tmp_path / "bytes", figures, config=small))
    assert "implausible_delta" not in findings(write_run(tmp_path / "bpe", figures))


def test_older_runs_have_the_setting_of_sides_under_another_name():
    assert not level_predicts_preferences({})
    assert not level_predicts_preferences({"older.preference_sides": "'both'"})
    assert level_predicts_preferences({"older.preference_sides": "'worse'"})
    assert level_predicts_preferences({"older.preference_sides": "'both'", "lens_targets.sides": "'worse'"})
