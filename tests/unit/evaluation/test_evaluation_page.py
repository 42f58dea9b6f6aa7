"""The example, gin and metrics of docs/evaluation.md."""

import re
from pathlib import Path

from mcframe.config.run_config import load_run_config
from mcframe.hookspecs import Evaluation
from mcframe.metrics.catalogue import describe
from tests.support.evaluation_builders import FLAT, build_eval_model, build_model, some_sequences

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
    announced = []
    model = build_eval_model(build_model(FLAT), some_sequences(FLAT, 4, seed=0), announced=announced.append)
    result = evaluation.run(model)
    assert len(result.metrics) == model.tree.compressible_nodes(1) == 6
    assert announced == [7 * 4]
    assert result.tables[0].rows[0][1] == max(result.metrics.values())


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
