"""`--baseline` and `--drop-baseline`: the derived configuration, the run's name, contradictions."""

import pytest

from mcframe.config.baselines import BASELINES, baseline_option, run_name
from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError


@pytest.mark.parametrize("preset", ["quickstart.gin", "comparison.gin"])
@pytest.mark.parametrize("option", BASELINES)
def test_option_binds_what_a_file_would_bind(tmp_path, preset, option):
    file = tmp_path / "baseline.gin"
    file.write_text(f"include '{preset}'\n{BASELINES[option]}\n")
    expected = load_run_config([file], ["run.seed = 3"]).config.bound()
    derived = load_run_config([preset], ["run.seed = 3"], baseline=option)
    assert derived.config.bound() == expected


def test_run10s_file_is_its_plain_baseline():
    derived = load_run_config(["run10.gin"], [], baseline="--baseline").config.bound()
    assert derived == load_run_config(["run10_baseline.gin"], []).config.bound()


def test_removed_file_of_a_baseline_leads_to_the_option():
    with pytest.raises(UserError, match=r"quickstart_baseline\.gin") as error:
        load_run_config(["gin/quickstart_baseline.gin"], [])
    assert "Pass --gin gin/quickstart.gin --baseline" in error.value.remedy


@pytest.mark.parametrize(
    ("option", "binding"),
    [("--baseline", "run.variants = @variants.single_span"), ("--drop-baseline", "run.gistnet = @gistnet.mean")],
)
def test_contradicting_override_is_refused(option, binding):
    with pytest.raises(UserError, match=f"{option} binds") as error:
        load_run_config(["smoke.gin"], [binding], baseline=option)
    assert binding in str(error.value.location)
    load_run_config(["smoke.gin"], [BASELINES[option]], baseline=option)


def test_options_exclude_each_other_and_name_the_run():
    with pytest.raises(UserError, match="both"):
        baseline_option(baseline=True, drop_baseline=True)
    names = [
        run_name("quickstart", baseline_option(baseline=plain, drop_baseline=drop))
        for plain, drop in ((False, False), (True, False), (False, True))
    ]
    assert names == ["quickstart", "quickstart_baseline", "quickstart_drop_baseline"]
