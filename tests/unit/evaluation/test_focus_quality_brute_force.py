"""`focus` against loops: every strategy chosen and judged block by block, target by target, in plain Python."""

import pytest
import torch

from mcframe.context.counter_rng import variant_seeds
from mcframe.evaluation.collapse import random_focus
from mcframe.evaluation.focus_baselines import Strategies
from mcframe.evaluation.focus_quality import FocusQuality
from tests.property.modeling.test_evaluate_focus_oracle import told
from tests.support import oracle
from tests.support.evaluation_builders import FLAT, TREE, build_model, build_subject, changed, some_sequences
from tests.support.generators import geometry_of
from tests.support.step_oracle import SlowStep, number

EDGE = oracle.Tree(window=25, block_size=3, levels=1, slots=2, tail=7, sink=1)
"""A block ends right at the cursor, and the first one is protected."""


def free_blocks(tree):
    return [block for block in range(tree.blocks) if not oracle.is_protected(tree, block)]


def keep_best(tree, values, raw_tokens_budget):
    """Collapse the least valuable blocks, one at a time, until the context fits."""
    focus = [0] * tree.blocks
    for block in sorted(free_blocks(tree), key=lambda block: (values[block], block)):
        if len(oracle.build_context(tree, focus)) <= raw_tokens_budget:
            break
        focus[block] = 1
    return focus


def judging(tree, loss_mask):
    """Positions whose target stands behind the cursor and whose token no focus ever collapses."""
    last = max(((b + 1) * tree.block_size for b in free_blocks(tree)), default=0)
    return [t for t in range(tree.window) if loss_mask[t] and t + 1 >= tree.cursor and t >= last]


def choices(slow, tree, tokens, loss_mask, budget):
    """Strategy -> focus of one sequence, all but random."""

    def run(focus, condition):
        return told(slow, tree, [tokens], focus, 0, condition, [0])[0]

    raw = [0] * tree.blocks
    full = run(raw, "full")
    positions = judging(tree, loss_mask)
    surprise, worth, wish = [0.0] * tree.blocks, [0.0] * tree.blocks, [0.0] * tree.blocks
    table = slow.table_of(tokens)
    for block in free_blocks(tree):
        inside = range(block * tree.block_size, (block + 1) * tree.block_size)
        surprise[block] = oracle.mean([full[p - 1] for p in inside if 0 < p < tree.cursor])
        alone = [int(b == block) for b in range(tree.blocks)]
        dropped = run(alone, "drop")
        worth[block] = oracle.mean([dropped[t] - full[t] for t in positions])
        wish[block] = oracle.mean([number(slow.score(table[0, p, 0], oracle.Entry(p, p + 1, 0, 0, 1))) for p in inside])
    values = {"recency": list(range(tree.blocks)), "surprise": surprise, "oracle": worth, "lens": wish}
    return {name: keep_best(tree, value, budget) for name, value in values.items()}, full, positions


@pytest.mark.parametrize("tree", [FLAT, EDGE, TREE], ids=["flat", "edge", "levels"])
def test_every_figure_of_every_strategy(tree):
    model, held = build_model(tree, seed=3), some_sequences(tree, 3, seed=4)
    subject, slow, tree = build_subject(model, held, batch=3), SlowStep(model, tree), geometry_of(tree)
    shortest = tree.window - len(free_blocks(tree)) * (tree.block_size - tree.slots)
    fraction = (shortest + 2 * (tree.block_size - tree.slots)) / tree.window  # two blocks may stay raw
    budget = int(fraction * tree.window + 1e-9)
    found = FocusQuality(budgets=(0.01, fraction), draws=2, resamples=40).run(subject)
    assert any("1 %" in note and "left out" in note for note in found.notes)

    wanted, count = {}, 0
    collapsed = len(free_blocks(tree)) - 2
    random = random_focus(variant_seeds(0, torch.arange(3), 2), tree, 1, collapsed).tolist()
    strategies = Strategies(subject, held, 2).focuses(budget, [])
    for row, tokens in enumerate(held.tokens.tolist()):
        focuses, full, positions = choices(slow, tree, tokens, held.loss_mask[row].tolist(), budget)
        for name, focus in focuses.items():
            assert strategies[name][row, 0].tolist() == focus, name
        drawn = {name: [focus] for name, focus in focuses.items()} | {"random": random[row]}
        assert len({tuple(f) for f in random[row]}) <= 2
        count += len(positions)
        for condition in ("drop", "gist"):
            for t in positions:
                wanted.setdefault(("nll", condition, "full"), []).append(full[t])
            for name, several in drawn.items():
                said = [told(slow, tree, [tokens], focus, 0, condition, [0]) for focus in several]
                for t in positions:
                    wanted.setdefault(("nll", condition, name), []).append(oracle.mean([s[0][t] for s in said]))
                    wanted.setdefault(("accuracy", condition, name), []).append(oracle.mean([s[1][t] for s in said]))
    prefix = f"eval/focus_quality/at_{100 * fraction:g}"
    means = {key: oracle.mean(values) for key, values in wanted.items()}
    for (what, condition, name), value in means.items():
        assert found.metrics[f"{prefix}/{what}/{condition}/{name}"] == pytest.approx(value, abs=1e-5)
        if what == "nll" and name != "full":
            cost = value - means["nll", condition, "full"]
            assert found.metrics[f"{prefix}/delta/{condition}/{name}"] == pytest.approx(cost, abs=1e-5)
            assert found.metrics[f"{prefix}/entries/{name}"] == budget
    for condition in ("drop", "gist"):
        of = {name: means["nll", condition, name] for name in ("random", "recency", "surprise", "oracle", "lens")}
        for name in ("random", "recency", "surprise", "oracle"):
            minus = found.metrics[f"{prefix}/lens_minus/{condition}/{name}"]
            assert minus == pytest.approx(of["lens"] - of[name], abs=1e-5)
        gain = found.metrics.get(f"{prefix}/gain/{condition}")
        if gain is not None:
            assert gain == pytest.approx((of["random"] - of["lens"]) / (of["random"] - of["oracle"]), abs=1e-4)
    assert found.metrics[f"{prefix}/targets"] == count


def focuses_of(model, held, budget):
    return Strategies(build_subject(model, held, batch=8), held, 2).focuses(budget, [])


@pytest.mark.parametrize("lensnet", ["entry", "transformer"])
def test_only_the_oracle_reads_behind_the_cursor(lensnet):
    model, held = build_model(FLAT, seed=7, lensnet=lensnet, gistnet="states"), some_sequences(FLAT, 8, seed=8)
    before = focuses_of(model, held, 16)
    other = (held.tokens + 1) % model.gpt.vocab_size
    behind = changed(held, torch.cat((held.tokens[:, : FLAT.cursor], other[:, FLAT.cursor :]), dim=1))
    after = focuses_of(model, behind, 16)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"oracle"}
    # The test can fail: what stands before the cursor does matter.
    ahead = changed(held, torch.cat((other[:, : FLAT.cursor], held.tokens[:, FLAT.cursor :]), dim=1))
    after = focuses_of(model, ahead, 16)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"oracle", "surprise", "lens"}


def test_a_model_without_lens_or_gists_is_compared_all_the_same():
    held = some_sequences(FLAT, 4, seed=1)
    found = FocusQuality(budgets=(0.7,), resamples=20).run(build_subject(build_model(FLAT, gistnet=None), held))
    assert "eval/focus_quality/at_70/nll/drop/oracle" in found.metrics
    assert not any("lens" in name or "gist" in name for name in found.metrics)
    assert any("no LensNet" in note for note in found.notes)


def test_nothing_behind_the_cursor_is_said_and_not_judged():
    tree = oracle.Tree(window=24, block_size=3, levels=1, slots=1, tail=0, sink=0)
    found = FocusQuality(resamples=20).run(build_subject(build_model(tree), some_sequences(tree, 2, seed=1)))
    assert found.metrics == {}
    assert "no target stands behind the cursor" in found.notes[0]
