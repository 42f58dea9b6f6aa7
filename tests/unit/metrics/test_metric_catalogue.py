import pytest

from mcframe.metrics.catalogue import CATALOGUE, SAMPLE_SUFFIXES, describe

# Every name of the metrics table in docs/concepts.md, written out.
TABLE = """
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
train/step_ms train/data_ms train/base_ms train/objectives_ms train/metrics_ms train/backward_ms train/optimizer_ms
train/validation_ms train/checkpoint_ms train/hfu train/memory_gib_max train/rss_gib_max
mc/focus_iterations mc/preference_strength mc/ema_kl mc/reconstruction_loss
train/loss train/loss_lod0 train/lr train/grad_norm train/tok_per_sec train/mfu
train/update_ratio/gpt.blocks.11 train/update_ratio/gistnet
train/tokens train/tokens_per_step train/grad_accum_steps mc/grad_accum_steps
val/loss val/bpb
eval/gist_quality/lod1_at_75/delta/gist/tail eval/gist_quality/lod1_at_87.5/recovery/gist/16_low
eval/gist_quality/lod2_at_90/gist_minus/drop_twin/evidence_high eval/gist_quality/lod1_at_75/accuracy/full/gist_entry
eval/my_recall/lod1_at_75/nll/full/512 eval/gist_quality/lod1_at_75/targets/tail eval/gist_quality/lod1_at_75/documents/tail
eval/gist_quality/lod1_at_75/entries eval/gist_quality/lod2_at_75/nll/full/behind
eval/focus_quality/at_25/gain/drop eval/focus_quality/at_25/lens_minus/gist/surprise_low eval/focus_quality/at_2.5/nll/drop/full
eval/focus_quality/at_25/delta/drop/oracle eval/focus_quality/at_25/accuracy/gist/lens eval/focus_quality/at_25/entries/random
eval/focus_quality/at_25/targets eval/focus_quality/at_25/documents
""".split()  # noqa: SIM905 - the table is easier to read and compare as lines


ALWAYS_DEFINED = {"train/memory_gib", "train/rss_gib"}


@pytest.mark.parametrize("name", TABLE)
def test_the_catalogue_describes_every_metric_of_the_concepts_table(name):
    metric = describe(name)
    assert metric.unit
    assert metric.meaning
    assert metric.better in ("lower", "higher", "neither")


def test_every_entry_is_in_the_table_or_counts_undefined_samples():
    described = {describe(name).name for name in TABLE}
    extra = {metric.name for metric in CATALOGUE} - described
    added = {"loss/{objective}", "loss/{objective}/{figure}"}  # what plug-ins log is in no table
    assert extra == {f"{name}_undefined" for name in SAMPLE_SUFFIXES.keys() - ALWAYS_DEFINED} | added


def test_names_are_unique():
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "mc/lod_delta",
        "mc/lod_delta/",
        "mc/lod_delta/x",
        "mc/lod_delta/01",
        "mc/lod_delta/1/2",
        "train/los",
        "mfu",
        "",
        "eval/focus_quality/at_25/gain/other",
    ],
)
def test_an_unknown_name_is_a_key_error(name):
    with pytest.raises(KeyError):
        describe(name)


def test_every_suffix_of_a_sample_is_described():
    for name, suffixes in SAMPLE_SUFFIXES.items():
        for suffix in suffixes if name in ALWAYS_DEFINED else (*suffixes, "undefined"):
            describe(f"{name}_{suffix}")


def test_directions_that_decide_how_runs_are_compared():
    assert describe("mc/tail_delta").better == "lower"
    assert describe("mc/preference_corr_mean").better == "higher"
    assert describe("train/mfu").unit == "fraction"
