"""The gin and metrics of docs/evaluation.md."""

import re
from pathlib import Path

from mcframe.config.run_config import load_run_config
from mcframe.metrics.catalogue import describe

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "evaluation.md").read_text("utf-8")


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)[1]


def test_the_gin_of_the_page_loads(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'smoke.gin'\n" + block("gin"), "utf-8")
    run_config = load_run_config([tmp_path / "mine.gin"], []).run_config
    made = [make() for make in run_config.evaluations]
    assert [evaluation.name for evaluation in made] == ["gist_quality", "recall"]
    assert made[0].task is None
    assert made[1].task is not None


def test_the_metrics_of_the_page_exist():
    names = re.findall(r"`(eval/(?:gist|focus)_quality/[\w/.]+)`", PAGE)
    assert names
    assert all(describe(name).meaning for name in names)
