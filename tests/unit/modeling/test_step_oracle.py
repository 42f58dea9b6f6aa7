import pytest

from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE
from tests.support.step_checks import check_against_the_slow_step

WEIGHTS = LossConfig(
    next_token=0.7,
    variants=1.3,
    delta_penalty=0.9,
    lens=2.0,
    rank_weight=0.6,
    balance=0.8,
    rank_margin=0.3,
    temperature=0.7,
)


@pytest.mark.parametrize("seed", range(2))
def test_two_variants_with_gradients(seed):
    check_against_the_slow_step(TREE, variants=2, seed=seed, gradients=True, settings=WEIGHTS)


@pytest.mark.parametrize(
    "tree",
    [
        oracle.Tree(window=26, block_size=4, levels=1, slots=1, tail=5, sink=0),  # T is no multiple of K
        oracle.Tree(window=32, block_size=4, levels=1, slots=3, tail=6, sink=1),
        oracle.Tree(window=36, block_size=3, levels=2, slots=2, tail=4, sink=0),
        oracle.Tree(window=30, block_size=2, levels=3, slots=1, tail=3, sink=0),
        oracle.Tree(window=20, block_size=2, levels=2, slots=1, tail=0, sink=0),  # one target stands behind the cursor
    ],
)
def test_other_trees(tree):
    check_against_the_slow_step(tree, variants=2, sequences=1, seed=11, settings=WEIGHTS)


def test_three_variants_are_three_pairs():
    check_against_the_slow_step(TREE, variants=3, sequences=1, seed=5, settings=WEIGHTS)


def test_default_weights():
    check_against_the_slow_step(TREE, variants=2, seed=6)


@pytest.mark.parametrize("variants", [1, 2])
def test_span_utility(variants):
    settings = LossConfig(lens=1.0, kind="preference" if variants == 1 else "span_utility")
    check_against_the_slow_step(TREE, variants=variants, seed=8, settings=settings, sequences=1)


@pytest.mark.parametrize("options", [{"placement": "start"}, {"placement": "end", "smoothing": False}])
def test_other_positions(options):
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=9, gistnet="mean", **options)
