"""The training step against the slow step, with all losses, trees, networks and masks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE
from tests.support.step_checks import check_against_the_slow_step

LENS = LossConfig(
    next_token=0.7, variants=1.3, delta_penalty=0.9, lens=2.0, rank_weight=0.6, balance=0.8, rank_margin=0.3,
    temperature=0.7,
)  # fmt: skip
ALL = LossConfig(
    next_token=0.7, variants=1.3, delta_penalty=0.9, distillation=0.8, contrast=3.0, reconstruction=0.6, lens=1.1
)  # fmt: skip
DROP = LossConfig(lens=1.0, condition="drop")
ONLY = dict.fromkeys(("next_token", "variants", "delta_penalty", "lens"), 0.0)
TREES = {
    "levels": TREE,
    "no multiple of K": oracle.Tree(window=26, block_size=4, levels=1, slots=1, tail=5, sink=0),
    "slots": oracle.Tree(window=32, block_size=4, levels=1, slots=3, tail=6, sink=1),
    "slots and levels": oracle.Tree(window=36, block_size=3, levels=2, slots=2, tail=4, sink=0),
    "three levels": oracle.Tree(window=30, block_size=2, levels=3, slots=1, tail=3, sink=0),
    "no tail": oracle.Tree(window=20, block_size=2, levels=2, slots=1, tail=0, sink=0),  # one target after the cursor
}


@pytest.mark.parametrize("tree", TREES)
def test_trees(tree):
    check_against_the_slow_step(TREES[tree], variants=2, seed=3, settings=ALL, rebuild=2)


CASES = {
    "defaults": {"sequences": 2, "depth": 2},
    "two sequences": {"settings": LENS, "sequences": 2, "gradients": True},
    "three variants": {"settings": LENS, "variants": 3},
    "one variant": {"settings": LossConfig(lens=1.0), "variants": 1},
    "span utility": {"settings": LossConfig(lens=1.0, kind="span_utility")},
    "start of gists": {"gistnet": "mean", "placement": "start"},
    "end of gists, not smoothed": {"gistnet": "mean", "placement": "end", "smoothing": False},
    "all": {"settings": ALL, "sequences": 2, "gradients": True, "masked": True, "gist_bias": -0.5, "depth": 2},
    "distillation": {"settings": LossConfig(**ONLY | {"distillation": 1.0}), "gradients": True},
    "distillation of tokens": {
        "settings": LossConfig(**ONLY | {"distillation": 1.0, "contrast": 2.0}, gist_targets=False),
        "gradients": True,
    },
    "reconstruction": {"settings": LossConfig(**ONLY | {"reconstruction": 1.0}), "gradients": True},
    "penalty": {"settings": LossConfig(**ONLY | {"delta_penalty": 1.0}), "gradients": True},
    "weak contrast": {"settings": LossConfig(distillation=1.0, contrast=0.5)},
    "strong contrast": {"settings": LossConfig(distillation=1.0, contrast=20.0)},
    "attribution": {"settings": LossConfig(lens=1.0, attribution=0.5), "sequences": 2, "gradients": True},
    "attribution by drop": {"settings": LossConfig(lens=1.0, attribution=0.5, condition="drop"), "variants": 3},
    "compared by drop": {"settings": DROP, "variants": 3},
    "compared by drop, masked": {"settings": DROP, "variants": 3, "sequences": 2, "masked": True},
    "gists of states": {"settings": ALL, "gistnet": "states", "gradients": True, "depth": 2},
    "gists of last states": {"settings": ALL, "gistnet": "last states", "depth": 2},
    "gists of tokens": {"settings": ALL, "gistnet": "tokens", "gradients": True},
    "mean gists": {"settings": ALL, "gistnet": "mean"},
    # Collapsed blocks are dropped.
    "no GistNet": {"settings": ALL, "gistnet": None, "gradients": True, "gist_bias": 0.3},
    "no GistNet, masked": {"settings": ALL, "gistnet": None, "sequences": 2, "masked": True},
    "no LensNet": {"settings": ALL, "lensnet": None, "gradients": True},
    "narrow heads": {"settings": ALL, "head_width": 6, "gist_bias": 0.5},
    "wide heads": {"settings": ALL, "gradients": True, "head_width": 10, "gist_bias": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_step(case):
    defaults = {"variants": 2, "seed": 4 + list(CASES).index(case), "depth": 1}
    check_against_the_slow_step(TREE, **defaults | CASES[case])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(TREES)), st.integers(0, 2**20), st.integers(1, 3), st.booleans(), st.sampled_from([0.2, 1.0])
)
def test_random_draws(tree, seed, rebuild, masked, fraction):
    check_against_the_slow_step(
        TREES[tree],
        variants=1 + seed % 2,
        sequences=2,
        seed=seed,
        settings=LossConfig(distillation=0.5, contrast=1.0, reconstruction=1.0, fraction=fraction),
        rebuild=rebuild,
        masked=masked,
        lensnet="entry" if seed % 3 else None,
        gist_bias=(None, -1.0)[seed % 2],
        depth=1,
        width=8,
    )
