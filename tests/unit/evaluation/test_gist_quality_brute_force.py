"""`controls` against loops over one sequence and one target at a time, with a model written down once more."""

import math

import pytest
import torch

from mcframe.context.counter_rng import variant_seeds
from mcframe.evaluation.collapse import random_focus
from mcframe.evaluation.gist_quality import GistQuality, conditions
from mcframe.evaluation.gist_report import Comparison, evaluate_subset
from mcframe.evaluation.swap_pairs import neighboured
from mcframe.evaluation.target_subsets import GIST_ENTRY
from tests.property.modeling.test_evaluate_focus_oracle import told
from tests.support import oracle
from tests.support.evaluation_builders import FLAT, TREE, build_model, build_subject, some_sequences
from tests.support.generators import geometry_of
from tests.support.step_oracle import SlowStep

BUCKETS = {"16": (0, 16), "32": (16, 32), "128": (32, 128), "512": (128, 512)}
SLOTS = oracle.Tree(window=25, block_size=4, levels=1, slots=2, tail=6, sink=1)


def places(tree, focus, t, evidence):
    """The regions that the target behind token t belongs to, found by walking."""
    lod = [focus[s // tree.block_size] if s // tree.block_size < tree.blocks else 0 for s in range(tree.window)]
    if lod[t]:
        return [GIST_ENTRY] if (t + 1) % tree.block_size ** lod[t] == 0 else []
    found = ["tail"] if t + 1 >= tree.cursor else []
    if evidence is not None and evidence[t] >= 0 and lod[evidence[t]]:
        found.append("evidence")
    before = t
    while before >= 0 and not lod[before]:
        before -= 1
    if before >= 0:
        distance = t - before - 1
        found.append("behind")
        found += [name for name, (low, high) in BUCKETS.items() if low <= distance < high]
    return found


def brute_force(slow, tree, held, focuses, names, references):
    """Region -> condition -> [(nll, nll of full, right)], and region -> documents."""
    batch, swap_with = held.tokens.tolist(), [row ^ 1 for row in range(held.tokens.shape[0])]
    values, documents = {}, {}
    for row, focus in enumerate(focuses):
        said = {name: (told(slow, tree, batch, focus, row, name, swap_with), None) for name in ("full", *names)}
        for name, (other, condition) in references.items():
            own = told(other, tree, batch, focus, row, condition, swap_with)
            said[name] = (own, told(other, tree, batch, focus, row, "full", swap_with))
        evidence = None if held.evidence is None else held.evidence[row].tolist()
        for t in range(tree.window):
            if not held.loss_mask[row, t]:
                continue
            for where in places(tree, focus, t, evidence):
                documents.setdefault(where, []).append(int(held.documents[row, t + 1]))
                for name, ((nll, right), own_full) in said.items():
                    full = (own_full or said["full"][0])[0][t]
                    values.setdefault(where, {}).setdefault(name, []).append((nll[t], full, right[t]))
    return values, documents


def expected(values, documents, gists):
    """The metrics, by name within one focus."""
    metrics = {}
    for where, by_name in values.items():
        delta = {name: sum(n - f for n, f, _ in v) / len(v) for name, v in by_name.items() if name != "full"}
        delta = {name: mean for name, mean in delta.items() if not math.isnan(mean)}
        metrics[f"targets/{where}"] = len(documents[where])
        metrics[f"documents/{where}"] = len(set(documents[where]))
        metrics[f"nll/full/{where}"] = sum(n for n, _, _ in by_name["full"]) / len(by_name["full"])
        for name in ("full", *delta):
            metrics[f"accuracy/{name}/{where}"] = sum(r for *_, r in by_name[name]) / len(by_name[name])
        for name, mean in delta.items():
            metrics[f"delta/{name}/{where}"] = mean
            if gists and name != "gist":
                metrics[f"gist_minus/{name}/{where}"] = delta["gist"] - mean
        if "drop" in delta:
            drop = min(mean for name, mean in delta.items() if name.startswith("drop"))
            cheap = min(mean for name, mean in delta.items() if name.startswith("mean"))
            for name, mean in {**delta, "mean": cheap}.items():
                if name in ("gist", "swap", "mean"):
                    metrics[f"recovery/{name}/{where}"] = 1 - mean / drop
    return metrics


def compare(found, wanted, prefix, costly):
    own = {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}
    points = {n: v for n, v in own.items() if not n.endswith(("_low", "_high"))}
    assert points.pop("entries")
    for name, value in wanted.items():
        where = name.rsplit("/", 1)[1]
        if name.startswith("recovery/") and where not in costly:
            assert name not in points
            continue
        assert points.pop(name) == pytest.approx(value, abs=1e-5), name
    assert not points, "the evaluation tells what nobody expected"


@pytest.mark.parametrize("gistnet", ["transformer", "states", None])
@pytest.mark.parametrize("tree", [TREE, FLAT, SLOTS], ids=["levels", "flat", "slots"])
def test_every_figure_of_every_condition(tree, gistnet):
    tree, references = geometry_of(tree), {}
    model = build_model(tree, seed=1, gistnet=gistnet)
    held = some_sequences(tree, 4, seed=2, evidence=tree is FLAT)
    oracles = {}
    if tree is FLAT:
        drop, mean = build_model(tree, seed=5, gistnet=None), build_model(tree, seed=6, gistnet="mean")
        references = {"drop": build_subject(drop, held), "mean": build_subject(mean, held)}
        oracles = {"drop_baseline": (SlowStep(drop, tree), "drop"), "mean_baseline": (SlowStep(mean, tree), "mean")}
    subject = build_subject(model, held, baselines=references)
    found = GistQuality(lengths=(0.8, 0.6), resamples=50).run(subject)
    ordered = neighboured(held, tree) if gistnet else held
    names = [name for name in conditions(subject, True) if name != "full"]
    seeds = variant_seeds(subject.seed, torch.arange(4), 1)[:, 0]
    prefixes = sorted({name.rsplit("/", 1)[0] + "/" for name in found.metrics if name.endswith("/entries")})
    assert len(prefixes) >= tree.levels
    for prefix in prefixes:
        lod, entries = int(prefix.split("lod")[1][0]), int(found.metrics[f"{prefix}entries"])
        count = (tree.window - entries) // tree.saving(lod)
        focuses = random_focus(seeds, tree, lod, count).tolist()
        assert all(len(oracle.build_context(tree, focus)) == entries for focus in focuses)
        values, documents = brute_force(SlowStep(model, tree), tree, ordered, focuses, names, oracles)
        deltas = {n: v for n, v in found.metrics.items() if n.startswith(f"{prefix}delta/drop")}
        costly = {
            where for where in values
            if where != GIST_ENTRY
            and min((deltas[n], deltas.get(f"{n}_low", math.nan)) for n in deltas if n.endswith(f"/{where}"))[1] > 0
        }  # fmt: skip
        compare(found.metrics, expected(values, documents, bool(gistnet)), prefix, costly)


def test_recovery_is_told_where_dropping_costs_and_nowhere_else():
    """One document's figures are given; only those of `drop` decide."""
    held = some_sequences(FLAT, 4, seed=0)
    mask = held.loss_mask
    shape = mask.shape
    costs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    free = costs - 0.5 - (costs - 0.5)[mask].mean()
    for drop, told_so in ((costs, True), (free, False)):
        delta = {"drop": drop, "mean": drop * 0.75, "swap": drop, "gist": drop * 0.25}
        right = {name: torch.ones(shape) for name in ("full", *delta)}
        comparison = Comparison("lod1_at_75", 1, 20, torch.zeros(4, FLAT.blocks), torch.ones(shape), delta, right)
        verdict = evaluate_subset(comparison, "tail", mask, held, 0, 500)
        assert verdict.costs == told_so
        if told_so:
            assert verdict.recovery["gist"].value == pytest.approx(0.75)
            assert verdict.recovery["gist"].low == pytest.approx(0.75), "a constant ratio has no spread"
            assert verdict.recovery["mean"].value == pytest.approx(0.25)
            assert verdict.worth.startswith("keeps 75 %")
        else:
            assert verdict.recovery == {}
            assert verdict.worth == "the spans carried nothing"


@pytest.mark.parametrize(
    ("gist", "swap", "words"),
    [(1.0, 1.2, "worth nothing"), (0.5, 0.5, "carries nothing"), (0.5, 0.9, "keeps 50 %")],
)
def test_verdicts_in_words(gist, swap, words):
    held = some_sequences(FLAT, 4, seed=0)
    drop = 0.5 + torch.rand(held.loss_mask.shape, generator=torch.Generator().manual_seed(1))
    delta = {"drop": drop, "mean": drop, "swap": swap * drop, "gist": gist * drop}
    right = {name: torch.ones(drop.shape) for name in ("full", *delta)}
    comparison = Comparison("lod1_at_75", 1, 20, torch.zeros(4, FLAT.blocks), drop, delta, right)
    assert evaluate_subset(comparison, "tail", held.loss_mask, held, 0, 500).worth.startswith(words)


def test_the_cheaper_of_a_control_and_its_reference_counts():
    held = some_sequences(FLAT, 4, seed=0)
    cost = 0.5 + torch.rand(held.loss_mask.shape, generator=torch.Generator().manual_seed(1))
    costs = {"drop": cost * 2, "drop_baseline": cost, "mean": cost * 0.5, "mean_baseline": cost, "gist": cost * 0.25}
    right = {name: torch.ones(cost.shape) for name in ("full", *costs)}
    comparison = Comparison("lod1_at_75", 1, 20, torch.zeros(4, FLAT.blocks), cost, costs, right)
    verdict = evaluate_subset(comparison, "tail", held.loss_mask, held, 0, 200)
    assert (verdict.drop, verdict.mean) == ("drop_baseline", "mean")
    assert verdict.recovery["gist"].value == pytest.approx(0.75)
    assert verdict.recovery["mean"].value == pytest.approx(0.5)
    # What the reference does without any cost was never lost.
    costs["drop_baseline"] = cost - cost[held.loss_mask].mean()
    verdict = evaluate_subset(comparison, "tail", held.loss_mask, held, 0, 200)
    assert verdict.worth == "the spans carried nothing"
