"""Each rule on a run with its defect and on healthy runs, and all rules on the run of the founding review."""

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

NO_OVERLAP = {"windows": 64, "covered": 6, "characters": 1000, "complete": True}


def findings(run, baseline=None) -> dict[str, Finding]:
    case = Case(read_run(run), read_rules(), read_run(baseline) if baseline else None)
    return {finding.rule: finding for finding in apply_rules(case).findings}


@pytest.fixture
def found_in(tmp_path):
    """Return a function from the metrics of a run to its findings by rule."""
    count = iter(range(100))
    return lambda metrics, **options: findings(write_run(tmp_path / f"run{next(count)}", metrics, **options))


def test_the_run_of_the_founding_review(found_in):
    found = found_in(like_the_seed())
    dip = found["throughput_dip"]
    assert "mc/variant_pack_ms" in dip.title
    fast, slow = (float(rate.replace(",", "")) for rate in re.findall(r"from ([\d,]+) to ([\d,]+) tok", dip.title)[0])
    assert fast == pytest.approx(3900, rel=0.01)
    assert slow == pytest.approx(3100, rel=0.01)
    explained = re.findall(r"explains (\d+) %", " ".join(dip.evidence))
    assert 90 <= float(explained[0]) <= 110
    assert np.allclose(np.array(dip.plot.shade) / 12288, (DIP[0] + 1, DIP[1]), atol=3)
    assert "0.0041" in found["low_mfu"].title
    assert "0.41 %" in found["low_mfu"].title
    assert "5.5 nats" in found["implausible_delta"].title
    assert any(re.search(r"mc/lod_loss/1 is \+1\.[012]", line) for line in found["implausible_delta"].evidence)
    assert "mc/lod_delta/1" in found["rising_lod_delta"].title
    assert "slow_pack" in found
    assert found.keys() == {"throughput_dip", "low_mfu", "implausible_delta", "rising_lod_delta", "slow_pack"}


def test_the_timers_of_run10_do_not_sum_to_its_step(found_in):
    """The founding review took 56 x 2048 tokens a step; at 3.9k tokens/s that is 29 s, not the 3.1 s of its timers."""
    found = found_in(like_the_seed(per_step=114688))
    summed, step = (float(ms.replace(",", "")) for ms in re.findall(r"([\d,]+) ms", found["time_unaccounted"].title))
    assert 3100 < summed < 3500
    assert 29_000 < step < 32_000


def with_parts_of_other(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the timers of the parts of the remainder, and of the complete step."""
    fractions = {"data": 0.02, "base": 0.2, "metrics": 0.03, "backward": 0.65, "optimizer": 0.1}
    rng = np.random.default_rng(7)
    metrics |= {
        f"train/{name}_ms": fraction * metrics["mc/other_ms"] * (1 + 0.02 * noise(rng, STEPS))
        for name, fraction in fractions.items()
    }
    metrics["train/step_ms"] = metrics["mc/controller_ms"] + metrics["mc/other_ms"]
    return metrics


def test_a_dip_is_caused_by_a_part_and_not_by_the_remainder_or_the_step(found_in):
    metrics = healthy()
    metrics["mc/other_ms"][slice(*DIP)] += 90.0
    metrics = with_parts_of_other(metrics)
    slower = slice(*DIP)
    for name, fraction in (("data", 0.02), ("backward", 0.65), ("base", 0.2), ("metrics", 0.03), ("optimizer", 0.1)):
        metrics[f"train/{name}_ms"][slower] += (90.0 if name == "data" else 0.0) - 90.0 * fraction
    metrics["train/tok_per_sec"] = 1000 * 12288 / metrics["train/step_ms"]
    found = found_in(metrics)
    assert found.keys() == {"throughput_dip"}
    assert "most likely timer: train/data_ms" in found["throughput_dip"].title


def test_the_parts_of_the_remainder_must_sum_to_the_step(found_in):
    """`mc/other_ms` is the rest of the step, so that a sum with it is always right."""
    metrics = with_parts_of_other(healthy())
    assert not found_in(metrics)
    metrics["train/backward_ms"] /= 2
    (found,) = found_in(metrics).values()
    assert found.rule == "time_unaccounted"
    assert "train/backward" in found.evidence[0]


@pytest.mark.parametrize(("n", "rho", "seeds"), [(STEPS, 0.3, 10), (60, 0.0, 20), (40, 0.6, 20), (1500, 0.6, 1)])
def test_a_healthy_run_has_no_finding(tmp_path, n, rho, seeds):
    for seed in range(seeds):
        run = write_run(tmp_path / str(seed), healthy(seed, n, rho), evaluation=GOOD_GISTS)
        baseline = write_run(tmp_path / f"{seed}baseline", healthy(seed + 1000, n, rho))
        assert findings(run, baseline) == {}


def test_every_rule_applies_to_a_healthy_run(tmp_path):
    run = write_run(
        tmp_path / "run",
        healthy(),
        evaluation=GOOD_GISTS,
        provenance={"device": "NVIDIA H200", "held_out_overlap": NO_OVERLAP},
    )
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
    "skipped_steps": {"train/rollbacks": lambda v: (np.arange(len(v)) > 50).astype(float)},
    "not_finite": {"train/grad_norm": lambda v: np.where(np.arange(len(v)) == 7, np.nan, 1.0)},
}


@pytest.mark.parametrize("rule", FIRING)
def test_a_rule_finds_its_defect(found_in, rule):
    metrics = healthy(3)
    for name, change in FIRING[rule].items():
        metrics[name] = change(metrics.get(name, np.ones(STEPS)))
    found = found_in(metrics)
    assert rule in found
    assert found[rule].evidence
    assert found[rule].step


def test_a_dip_without_a_timer_that_rose_has_no_cause(found_in):
    metrics = healthy(3)
    metrics["train/tok_per_sec"] = step_up(metrics["train/tok_per_sec"], -5000)
    assert "none of the timers rose" in found_in(metrics)["throughput_dip"].title
    bare = {name: values for name, values in metrics.items() if not name.endswith("_ms")}
    assert "no timer in the log" in found_in(bare)["throughput_dip"].title


def test_a_sum_of_timers_is_never_the_cause_of_a_dip(found_in):
    """The step and the remainder rise by at least as much as the part that rose."""
    metrics = like_the_seed()
    parts = {"train/backward_ms": 1500.0, "train/base_ms": 600.0, "train/optimizer_ms": 300.0}
    for name, ms in parts.items():
        metrics[name] = np.full(STEPS, ms) + noise(np.random.default_rng(len(name)), STEPS)
    metrics["train/optimizer_ms"] = metrics["train/optimizer_ms"] + metrics["mc/variant_pack_ms"]
    metrics["mc/variant_pack_ms"] = metrics["mc/variant_pack_ms"] * 0 + 4
    metrics["mc/other_ms"] = sum(metrics[name] for name in parts) + 1
    metrics["train/step_ms"] = metrics["mc/other_ms"] + 719.0
    found = found_in(metrics)
    assert "most likely timer: train/optimizer_ms" in found["throughput_dip"].title


@pytest.mark.parametrize("larger", ["mc/variant_pack_ms", "mc/lens_ms"])
def test_the_cause_of_a_dip_is_the_larger_rise(found_in, larger):
    metrics = healthy(3)
    for name in ("mc/variant_pack_ms", "mc/lens_ms"):
        metrics[name][slice(*DIP)] += 80.0 if name == larger else 30.0
    step = sum(metrics[f"mc/{part}_ms"] for part in ("build", "variant", "variant_pack", "lens", "other"))
    metrics["train/tok_per_sec"] = 1000 * 12288 / step
    found = found_in(metrics)
    assert f"most likely timer: {larger}" in found["throughput_dip"].title


def test_defects_within_the_limits_are_not_found(found_in):
    metrics = healthy(3)
    metrics["train/tok_per_sec"][50] /= 3
    metrics["train/update_ratio/lensnet.read"][100:168] = 0.0
    metrics["train/lr"] = np.where(np.arange(STEPS) < 85, 1.0, 0.01)
    metrics["train/loss_lod0"][85:] = metrics["train/loss_lod0"][84]
    assert not found_in(metrics).keys() & {"throughput_dip", "unmoved_weights", "stalled_loss"}


def test_a_loss_that_rises(found_in):
    metrics = healthy(3)
    metrics["train/loss_lod0"] += np.maximum(0, np.linspace(-1, 2, STEPS))
    assert "rises" in found_in(metrics)["stalled_loss"].title


def test_weights_that_stop_moving(found_in):
    metrics = healthy(3)
    metrics["train/update_ratio/lensnet.read"][60:] = 0.0
    found = found_in(metrics)["unmoved_weights"]
    assert found.title == "Weights do not move: lensnet.read."
    assert "last up to step 60" in found.evidence[0]
    assert found.plot.metrics == ("train/update_ratio/lensnet.read", "train/update_ratio/gpt.blocks.0")
    for name in metrics:
        if name.startswith("train/update_ratio/") or name == "train/lr":
            metrics[name] = np.zeros(STEPS)
    found = found_in(metrics)["unmoved_weights"]
    assert found.title == "No weights move at all."
    assert "train/lr is 0" in found.evidence[-1]


def test_gists_that_are_no_better_than_dropping(found_in):
    bad = {**GOOD_GISTS, "eval/gist_quality/lod1_at_75/gist_minus/drop/tail_high": 0.01}
    assert "1 of 1 controls" in found_in(healthy(), evaluation=bad)["gist_no_better"].title
    bad["eval/gist_quality/lod1_at_75/documents/tail"] = 8.0
    assert "gist_no_better" in found_in(healthy(), evaluation=bad)
    bad["eval/gist_quality/lod1_at_75/documents/tail"] = 7.0
    assert "gist_no_better" not in found_in(healthy(), evaluation=bad)


@pytest.mark.parametrize(
    ("change", "per_step", "evidence"),
    [({}, 8192, "8,192"), ({"run.seed": "1"}, 12288, "run.seed"), ({"run.text": "@text.files"}, 12288, "run.text")],
)
def test_a_baseline_with_other_tokens(tmp_path, change, per_step, evidence):
    run = write_run(tmp_path / "run", healthy())
    baseline = write_run(tmp_path / "baseline", healthy(per_step=per_step), config={**CONFIG, **change})
    assert evidence in " ".join(findings(run, baseline)["misaligned_tokens"].evidence)


def test_token_counts_that_diverge_are_found_without_configurations(tmp_path):
    run = write_run(tmp_path / "run", healthy(), config=None)
    baseline = write_run(tmp_path / "baseline", healthy(), config=None)
    assert findings(run, baseline) == {}
    lines = (baseline / "metrics.jsonl").read_text().splitlines()
    late = [line.replace('"step": ', '"step": 1') if '"step": 1' in line else line for line in lines]
    (baseline / "metrics.jsonl").write_text("\n".join(late) + "\n")
    assert "misaligned_tokens" in findings(run, baseline)


@pytest.mark.parametrize(
    ("mfu", "ranks", "expected"), [(0.41, 1, True), (0.0041, 1, False), (0.05, 1, False), (0.05, 4, True)]
)
def test_an_mfu_in_per_cent_contradicts_the_speed(found_in, mfu, ranks, expected):
    """run10 logged 0.41, meant as per cent: at 3.9k tokens/s of 1 GFLOP an H100 does 0.4 %.

    0.05 is less than 30 times the MFU of the plain model on one device at this speed, and more on four.
    """
    metrics = like_the_seed()
    metrics["train/mfu"] = mfu * (1 + 0.002 * noise(np.random.default_rng(0), STEPS))
    machine = {"device": "NVIDIA H100 80GB HBM3", "ranks": ranks}
    assert ("mfu_unit" in found_in(metrics, provenance={"machine": machine})) == expected


def test_packing_on_a_cpu_has_no_limit(tmp_path):
    metrics = healthy(3)
    metrics["mc/variant_pack_ms"] += 50
    run = write_run(tmp_path / "run", metrics, provenance={"machine": {"device": "cpu"}})
    assert "slow_pack" in apply_rules(Case(read_run(run), read_rules())).skipped


def test_if_the_level_predicts_preferences_the_correlation_of_gists_is_tested(found_in):
    metrics = healthy()
    metrics["mc/pref_score_corr"] = 0.05 * noise(np.random.default_rng(1), STEPS)
    config = {key: value for key, value in CONFIG.items() if key != "lens_targets.sides"}
    assert "mc/pref_score_corr" in found_in(metrics, config=config)["lens_uncorrelated"].evidence[0]
    assert "lens_uncorrelated" not in found_in(metrics)


def test_the_limit_of_a_plausible_delta_follows_the_vocabulary(found_in):
    metrics = healthy()
    metrics["mc/adv_delta_mean"] += 2.5
    small = {**CONFIG, "run.tokenizer": "@tokenizer.bytes"}
    small.pop("tokenizer.bpe.vocab_size")
    assert 0.4 * math.log(257) < 2.7 < 0.4 * math.log(65536)
    assert "implausible_delta" in found_in(metrics, config=small)
    assert "implausible_delta" not in found_in(metrics)


def test_older_runs_name_the_setting_of_sides_differently():
    assert not level_predicts_preferences({})
    assert not level_predicts_preferences({"older.preference_sides": "'both'"})
    assert level_predicts_preferences({"older.preference_sides": "'worse'"})
    assert level_predicts_preferences({"older.preference_sides": "'both'", "lens_targets.sides": "'worse'"})


def test_held_out_text_in_the_training_text(found_in):
    found = found_in(healthy(), provenance={"held_out_overlap": NO_OVERLAP | {"covered": 16}})["held_out_in_training"]
    assert found.title.startswith("25% of the held-out windows")
    assert "16 of 64" in found.evidence[0]
    assert "held_out_in_training" not in found_in(healthy(), provenance={"held_out_overlap": NO_OVERLAP})
