"""docs/evaluation.md: its evaluation runs, its gin loads, its metrics exist."""

import re
from pathlib import Path

import pytest

from mcframe.config.run_config import load_run_config
from mcframe.hookspecs import Evaluation
from mcframe.metrics.catalogue import describe
from tests.support.evaluation_builders import FLAT, build_model, build_subject, some_sequences

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "evaluation.md").read_text("utf-8")


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)[1]


def test_the_example_is_an_evaluation():
    made = {}
    exec(block("python"), made)
    offered = {}
    made["register_plugins"](lambda name, factory: offered.update({name: factory}))
    evaluation = offered["worst_block"](windows=4)
    assert isinstance(evaluation, Evaluation)
    told = []
    subject = build_subject(build_model(FLAT), some_sequences(FLAT, 4, seed=0), announced=told.append)
    findings = evaluation.run(subject)
    assert len(findings.metrics) == subject.tree.compressible_nodes(1) == 6
    assert told == [7 * 4]
    assert findings.tables[0].rows[0][1] == max(findings.metrics.values())


def test_the_gin_of_the_page_loads(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'smoke.gin'\n" + block("gin"), "utf-8")
    run_config = load_run_config([tmp_path / "mine.gin"], []).run_config
    made = [make() for make in run_config.evaluations]
    assert [evaluation.name for evaluation in made] == ["gist_quality", "recall"]
    assert made[0].task is None
    assert made[1].task is not None


@pytest.mark.parametrize("name", re.findall(r"`(eval/(?:gist|focus)_quality/[\w/.]+)`", PAGE))
def test_the_metrics_of_the_page_exist(name):
    assert describe(name).meaning
