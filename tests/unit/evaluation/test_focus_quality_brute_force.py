"""`focus_quality` against loops: every strategy chosen block by block and scored target by target, in plain Python."""

from dataclasses import replace

import pytest
import torch

from mcframe.context.counter_rng import variant_seeds
from mcframe.evaluation.collapse import random_focus
from mcframe.evaluation.focus_baselines import Strategies
from mcframe.evaluation.focus_quality import FocusQuality
from tests.support import oracle
from tests.support.evaluation_builders import FLAT, TREE, SlowScores, build_eval_model, build_model, some_sequences
from tests.support.generators import geometry_of

EDGE = oracle.Tree(window=25, block_size=3, levels=1, slots=2, tail=7, sink=1)
"""A block ends at the cursor, and the first block is protected."""


def free_blocks(tree):
    return [block for block in range(tree.blocks) if not oracle.is_protected(tree, block)]


def keep_best(tree, values, budget):
    """Collapse the least valuable blocks, one at a time, until the context fits."""
    focus = [0] * tree.blocks
    for block in sorted(free_blocks(tree), key=lambda block: (values[block], block)):
        if len(oracle.build_context(tree, focus)) <= budget:
            break
        focus[block] = 1
    return focus


def scored_positions(tree, loss_mask):
    """Return positions whose target is after the cursor and whose token no focus collapses."""
    last = max(((b + 1) * tree.block_size for b in free_blocks(tree)), default=0)
    return [t for t in range(tree.window) if loss_mask[t] and t + 1 >= tree.cursor and t >= last]


def choices(slow, tree, row, positions, budget):
    """Return strategy -> focus of one sequence, all but random."""
    full, table = slow.score(row, [0] * tree.blocks, "full")[0], slow.table(row)
    values = {name: [0.0] * tree.blocks for name in ("surprise", "oracle", "lens")}
    for block in free_blocks(tree):
        inside = range(block * tree.block_size, (block + 1) * tree.block_size)
        values["surprise"][block] = oracle.mean([full[p - 1] for p in inside if 0 < p < tree.cursor])
        dropped = slow.score(row, [int(b == block) for b in range(tree.blocks)], "drop")[0]
        values["oracle"][block] = oracle.mean([dropped[t] - full[t] for t in positions])
        scores = [slow.slow.score(table[0, p, 0], oracle.Entry(p, p + 1, 0, 0, 1)).item() for p in inside]
        values["lens"][block] = oracle.mean(scores)
    values["recency"] = list(range(tree.blocks))
    return {name: keep_best(tree, value, budget) for name, value in values.items()}


def slow_means(slow, rows, focuses, positions):
    """Return (quantity, condition, strategy) -> mean over all targets of all rows."""
    values = {}
    for row in range(rows):
        for condition in ("drop", "gist"):
            several = {"full": [[0] * slow.tree.blocks], **focuses[row]}
            for name, drawn in several.items():
                scores = [slow.score(row, focus, "full" if name == "full" else condition) for focus in drawn]
                for t in positions[row]:
                    for index, quantity in enumerate(("nll", "accuracy")):
                        mean = oracle.mean([score[index][t] for score in scores])
                        values.setdefault((quantity, condition, name), []).append(mean)
    return {key: oracle.mean(each) for key, each in values.items()}


@pytest.mark.parametrize("tree", [FLAT, EDGE, TREE], ids=["flat", "edge", "levels"])
def test_every_metric_of_every_strategy(tree):
    rows = 2
    model, data = build_model(tree, seed=3), some_sequences(tree, rows, seed=4)
    slow = SlowScores(model, tree, data.tokens.tolist())
    eval_model, tree = build_eval_model(model, data, batch=rows), geometry_of(tree)
    saving = tree.block_size - tree.slots
    # Two blocks may stay raw.
    budget = tree.window - (len(free_blocks(tree)) - 2) * saving
    found = FocusQuality(budgets=(0.01, budget / tree.window), draws=2).run(eval_model)
    assert any("1 %" in note and "skipped" in note for note in found.notes)

    # The allocator uses LOD1 only, so that every set of blocks is equally likely.
    random = random_focus(variant_seeds(0, torch.arange(rows), 2), tree, 1, len(free_blocks(tree)) - 2).tolist()
    strategies = Strategies(eval_model, data, 2).focuses(budget, [])
    positions = [scored_positions(tree, mask) for mask in data.loss_mask.tolist()]
    focuses = []
    for row in range(rows):
        chosen = choices(slow, tree, row, positions[row], budget)
        assert {name: strategies[name][row, 0].tolist() for name in chosen} == chosen
        focuses.append({name: [focus] for name, focus in chosen.items()} | {"random": random[row]})
    prefix = f"eval/focus_quality/at_{100 * budget / tree.window:g}"
    means, metrics = slow_means(slow, rows, focuses, positions), found.metrics
    for (quantity, condition, name), value in means.items():
        if name != "full" or quantity == "nll":
            assert metrics[f"{prefix}/{quantity}/{condition}/{name}"] == pytest.approx(value, abs=1e-5)
        if name != "full":
            nll = means["nll", condition, name]
            full, lens = (means["nll", condition, other] for other in ("full", "lens"))
            assert metrics[f"{prefix}/delta/{condition}/{name}"] == pytest.approx(nll - full, abs=1e-5)
            assert metrics[f"{prefix}/entries/{name}"] == budget
            if name != "lens":
                assert metrics[f"{prefix}/lens_minus/{condition}/{name}"] == pytest.approx(lens - nll, abs=1e-5)
    for condition in ("drop", "gist"):
        gain = metrics.get(f"{prefix}/gain/{condition}")
        if gain is not None:
            of = {name: means["nll", condition, name] for name in ("random", "lens", "oracle")}
            assert gain == pytest.approx((of["random"] - of["lens"]) / (of["random"] - of["oracle"]), abs=1e-4)
    assert metrics[f"{prefix}/targets"] == sum(map(len, positions))


@pytest.mark.parametrize("lensnet", ["entry", "transformer"])
def test_only_the_oracle_reads_after_the_cursor(lensnet):
    model, data = build_model(FLAT, seed=7, lensnet=lensnet, gistnet="states"), some_sequences(FLAT, 8, seed=8)

    def focuses_of(tokens):
        eval_model = build_eval_model(model, data, batch=8)
        return Strategies(eval_model, replace(data, tokens=tokens), 2).focuses(16, [])

    original, other = focuses_of(data.tokens), (data.tokens + 1) % model.gpt.vocab_size
    before = torch.arange(FLAT.window + 1) < FLAT.cursor
    # With other tokens before the cursor, the choices do change.
    for kept, expected in ((before, {"oracle"}), (~before, {"oracle", "surprise", "lens"})):
        changed = focuses_of(torch.where(kept, data.tokens, other))
        assert {name for name in original if not torch.equal(original[name], changed[name])} == expected


def test_a_model_without_lens_and_gists():
    data = some_sequences(FLAT, 4, seed=1)
    found = FocusQuality(budgets=(0.7,)).run(build_eval_model(build_model(FLAT, gistnet=None), data))
    assert "eval/focus_quality/at_70/nll/drop/oracle" in found.metrics
    assert not any("lens" in name or "gist" in name for name in found.metrics)
    assert any("no LensNet" in note for note in found.notes)


def test_without_targets_after_the_cursor_only_a_note_is_returned():
    tree = oracle.Tree(window=24, block_size=3, levels=1, slots=1, tail=0, sink=0)
    found = FocusQuality().run(build_eval_model(build_model(tree), some_sequences(tree, 2, seed=1)))
    assert found.metrics == {}
    assert len(found.notes) == 1
