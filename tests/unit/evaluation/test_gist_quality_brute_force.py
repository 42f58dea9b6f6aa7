"""`gist_quality` against loops over one sequence and one target at a time, with a second, slow model."""

import math
from dataclasses import replace

import pytest
import torch

from mcframe.context.counter_rng import variant_seeds
from mcframe.evaluation.collapse import random_focus
from mcframe.evaluation.gist_quality import GistQuality, conditions_of
from mcframe.evaluation.gist_report import ConditionScores, evaluate_subset
from mcframe.evaluation.swap_pairs import paired
from mcframe.evaluation.target_subsets import GIST_ENTRY
from tests.support import oracle
from tests.support.evaluation_builders import FLAT, TREE, SlowScores, build_eval_model, build_model, some_sequences
from tests.support.generators import geometry_of

BUCKETS = {"16": (0, 16), "32": (16, 32), "128": (32, 128), "512": (128, 512)}
SLOTS = oracle.Tree(window=25, block_size=4, levels=1, slots=2, tail=6, sink=1)


def subsets_of(tree, focus, t, evidence):
    """Return the subsets of the target after token t, found by walking."""
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
        found.append("after_span")
        found += [name for name, (low, high) in BUCKETS.items() if low <= distance < high]
    return found


def brute_force(slow, tree, data, focuses, names, baselines):
    """Return subset -> condition -> [(nll, nll of full, right)], and subset -> documents."""
    values, documents = {}, {}
    for row, focus in enumerate(focuses):
        scores = {name: (slow.score(row, focus, name), slow.score(row, focus, "full")) for name in ("full", *names)}
        for name, (other, condition) in baselines.items():
            scores[name] = other.score(row, focus, condition), other.score(row, focus, "full")
        evidence = None if data.evidence is None else data.evidence[row].tolist()
        for t in range(tree.window):
            for where in subsets_of(tree, focus, t, evidence) if data.loss_mask[row, t] else ():
                documents.setdefault(where, []).append(int(data.documents[row, t + 1]))
                for name, ((nll, right), (full, _)) in scores.items():
                    values.setdefault(where, {}).setdefault(name, []).append((nll[t], full[t], right[t]))
    return values, documents


def expected(values, documents, gists):
    """Return the metrics, by name within one focus."""
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
            drop, cheap = (min(v for name, v in delta.items() if name.startswith(kind)) for kind in ("drop", "mean"))
            for name, mean in {**delta, "mean": cheap}.items():
                if name in ("gist", "swap", "mean"):
                    metrics[f"recovery/{name}/{where}"] = 1 - mean / drop
    return metrics


def check_metrics(found, reference, prefix, costly):
    own = {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}
    points = {n: v for n, v in own.items() if not n.endswith(("_low", "_high"))}
    assert points.pop("entries")
    for name, value in reference.items():
        if name.startswith("recovery/") and name.rsplit("/", 1)[1] not in costly:
            assert name not in points
        else:
            assert points.pop(name) == pytest.approx(value, abs=1e-5), name
    assert not points, "the evaluation reports other metrics"


@pytest.mark.parametrize(
    ("tree", "gistnet"),
    [(TREE, "transformer"), (FLAT, "states"), (FLAT, None), (SLOTS, "transformer")],
    ids=["levels", "flat-states", "flat-no-gists", "slots"],
)
def test_every_metric_of_every_condition(tree, gistnet):
    baselines, slow_baselines = {}, {}
    tree, flat = geometry_of(tree), tree is FLAT
    model = build_model(tree, seed=1, gistnet=gistnet)
    data = some_sequences(tree, 4, seed=2, evidence=flat)
    ordered = paired(data, tree) if gistnet else data
    if flat:
        for name, seed, gists in (("drop", 5, None), ("mean", 6, "mean")):
            baseline = build_model(tree, seed=seed, gistnet=gists)
            baselines[name] = build_eval_model(baseline, data)
            slow_baselines[f"{name}_baseline"] = SlowScores(baseline, tree, ordered.tokens.tolist()), name
    eval_model = build_eval_model(model, data, baselines=baselines)
    found = GistQuality(lengths=(0.8, 0.6)).run(eval_model).metrics
    names = [name for name in conditions_of(eval_model, swappable=True) if name != "full"]
    seeds = variant_seeds(eval_model.seed, torch.arange(4), 1)[:, 0]
    slow = SlowScores(model, tree, ordered.tokens.tolist())
    prefixes = sorted({name.rsplit("/", 1)[0] + "/" for name in found if name.endswith("/entries")})
    assert len(prefixes) >= tree.levels
    for prefix in prefixes:
        lod, entries = int(prefix.split("lod")[1][0]), int(found[f"{prefix}entries"])
        focuses = random_focus(seeds, tree, lod, (tree.window - entries) // tree.saving(lod)).tolist()
        assert all(len(oracle.build_context(tree, focus)) == entries for focus in focuses)
        values, documents = brute_force(slow, tree, ordered, focuses, names, slow_baselines)
        deltas = {n: v for n, v in found.items() if n.startswith(f"{prefix}delta/drop")}
        costly = {
            where for where in values
            if where != GIST_ENTRY
            and min((deltas[n], deltas.get(f"{n}_low", math.nan)) for n in deltas if n.endswith(f"/{where}"))[1] > 0
        }  # fmt: skip
        check_metrics(found, expected(values, documents, bool(gistnet)), prefix, costly)


def tail_result(documents=None, **factors):
    """Return the result for random costs, times the factor of each condition; with factor 0 their mean is 0."""
    data = some_sequences(FLAT, 4, seed=0)
    if documents:
        data = replace(data, documents=data.documents % documents)
    cost = 0.5 + torch.rand(data.loss_mask.shape, generator=torch.Generator().manual_seed(1))
    centred = cost - cost[data.loss_mask].mean()
    delta = {name: centred if factor == 0 else factor * cost for name, factor in factors.items()}
    right = {name: torch.ones(cost.shape) for name in ("full", *delta)}
    scores = ConditionScores(torch.zeros(4, FLAT.blocks), cost, delta, right)
    return evaluate_subset(scores, "tail", data.loss_mask, data.documents[:, 1:])


def test_recovery_is_reported_only_if_dropping_costs():
    result = tail_result(drop=1, mean=0.75, swap=1, gist=0.25)
    assert result.costs
    assert (result.recovery["gist"].value, result.recovery["gist"].low) == pytest.approx((0.75, 0.75))
    assert result.recovery["mean"].value == pytest.approx(0.25)
    free = tail_result(drop=0, mean=0.75, swap=1, gist=0.25)
    assert (free.costs, free.recovery) == (False, {})


@pytest.mark.parametrize(
    ("drop", "gist", "swap", "conclusion"),
    [
        (0, 0.5, 0.9, "dropping costs nothing measurable"),
        (1, 1.0, 1.2, "not measurably better than dropping"),
        (1, 0.5, 0.5, "carries nothing"),
        (1, 0.5, 0.9, "keeps 50 %"),
    ],
)
def test_conclusions(drop, gist, swap, conclusion):
    assert tail_result(drop=drop, mean=1, swap=swap, gist=gist).worth.startswith(conclusion)


@pytest.mark.parametrize("documents", [1, 3, 7])
def test_few_documents_lead_to_no_conclusion(documents):
    result = tail_result(documents, drop=1, mean=1, swap=0.9, gist=0.5)
    assert result.documents == documents
    assert result.worth == f"no conclusion: expected 8 documents or more, got {documents}"
    assert (result.costs, result.recovery) == (False, {})
    assert math.isfinite(result.delta["drop"].low) == (documents > 1)


def test_the_cheaper_of_a_condition_and_its_baseline_counts():
    result = tail_result(drop=2, drop_baseline=1, mean=0.5, mean_baseline=1, gist=0.25)
    assert (result.drop, result.mean) == ("drop_baseline", "mean")
    assert result.recovery["gist"].value == pytest.approx(0.75)
    assert result.recovery["mean"].value == pytest.approx(0.5)
    assert not tail_result(drop=2, drop_baseline=0, mean=0.5, mean_baseline=1, gist=0.25).costs
