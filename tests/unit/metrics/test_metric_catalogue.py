"""The catalogue describes every metric of docs/concepts.md, and reads declarations without importing modules."""

import re
import subprocess
import sys

import pytest

from mcframe.metrics import catalogue
from mcframe.metrics.catalogue import CATALOGUE, describe, sample_reductions

NAMES = """
mc/adv_delta_mean mc/adv_delta_p95 mc/adv_delta_std
mc/gist_entry_delta/1 mc/gist_entry_delta/2
mc/lod_delta/1 mc/lod_delta/2
mc/delta_after/16 mc/delta_after/32 mc/delta_after/128 mc/delta_after/512
mc/tail_delta
mc/lod_loss/0 mc/lod_loss/1 mc/lod_loss/2 mc/lod_count/0 mc/lod_count/1 mc/lod_count/2 mc/wc_length
mc/lens_loss mc/policy_score_abs_mean mc/policy_score_std_mean
mc/preference_corr_mean mc/preference_corr_max mc/preference_corr_min
mc/preference_agreement mc/attribution_agreement mc/preference_pair_count
mc/pref_span_corr mc/pref_score_corr
mc/gist_kl mc/gist_delta_penalty
mc/build_ms mc/variant_ms mc/variant_pack_ms mc/lens_ms mc/other_ms mc/controller_ms mc/overhead_ms
train/step_ms train/data_ms train/base_ms train/losses_ms train/metrics_ms train/backward_ms train/optimizer_ms
train/validation_ms train/checkpoint_ms train/checkpoint_write_ms train/hfu train/memory_gib_max train/rss_gib_max
mc/focus_iterations mc/preference_strength mc/ema_kl mc/reconstruction_loss
train/loss train/loss_lod0 train/lr train/grad_norm train/tok_per_sec train/mfu
train/update_ratio/gpt.blocks.11 train/update_ratio/gistnet
train/tokens train/tokens_per_step train/grad_accum_steps mc/grad_accum_steps
val/loss val/bpb loss/next_token loss/z_loss/log_z
eval/gist_quality/lod1_at_75/delta/gist/tail eval/gist_quality/lod1_at_87.5/recovery/gist/16_low
eval/gist_quality/lod2_at_90/gist_minus/drop/evidence_high eval/gist_quality/lod1_at_75/accuracy/full/gist_entry
eval/my_recall/lod1_at_75/nll/full/512 eval/gist_quality/lod1_at_75/targets/tail
eval/gist_quality/lod1_at_75/documents/tail eval/gist_quality/lod1_at_75/entries
eval/focus_quality/at_25/gain/drop eval/focus_quality/at_25/lens_minus/gist/surprise_low
eval/focus_quality/at_2.5/nll/drop/full eval/focus_quality/at_25/delta/drop/oracle
eval/focus_quality/at_25/accuracy/gist/lens eval/focus_quality/at_25/entries/random
eval/focus_quality/at_25/targets eval/focus_quality/at_25/documents
""".split()  # noqa: SIM905 - the table is easier to read and compare as lines


@pytest.mark.parametrize("name", NAMES)
def test_every_logged_name_is_described(name):
    metric = describe(name)
    assert metric.unit
    assert metric.meaning
    assert metric.better in ("lower", "higher", "neither")


def test_entries_do_not_overlap():
    values = {"lod": "2", "distance": "16", "length": "87.5", "module": "gpt.blocks.3"}
    for metric in CATALOGUE:
        name = re.sub(r"\{(\w+)\}", lambda parameter: values.get(parameter[1], "word"), metric.name)
        assert describe(name) == metric


@pytest.mark.parametrize(
    "name", ["mc/lod_delta", "mc/lod_delta/", "mc/lod_delta/x", "mc/lod_delta/01", "mc/lod_delta/1/2", "mfu", ""]
)
def test_an_unknown_name_is_a_key_error(name):
    with pytest.raises(KeyError):
        describe(name)


def test_samples_have_the_reductions_of_the_catalogue():
    assert set(sample_reductions("mc/adv_delta")) == {"mean", "p95", "std"}
    assert sample_reductions("train/memory_gib") == ("max",)
    assert sample_reductions("a_plugin/samples") == ("mean",)


def test_directions_for_comparing_runs():
    assert describe("mc/tail_delta").better == "lower"
    assert describe("mc/preference_corr_mean").better == "higher"
    assert describe("train/mfu").unit == "fraction"


def test_a_module_declares_its_metrics_next_to_its_code():
    source = 'import nothing_like_this\n\nDECLARED_METRICS = {\n    "mc/new": ("nats", "lower", "a new metric"),\n}\n'
    assert list(catalogue._declared(source)) == [catalogue.Metric("mc/new", "nats", "lower", "a new metric")]


def test_the_catalogue_does_not_import_torch():
    code = "import sys, mcframe.metrics.catalogue, mcframe.metrics.dashboard; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
