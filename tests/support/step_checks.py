"""The checks themselves, as functions: tests call them on the code, and planted bugs must make them fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from mcframe.context.step_metrics import StepMetrics
from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import Given, Step, build_step, equal_lengths, random_tokens, seeds_for
from tests.support.step_oracle import Outcome, SlowStep, correlation, number
from tests.unit.context.test_counter_rng import splitmix


def pearson_of_sums(sums: Tensor) -> float:
    n, x, y, xx, yy, xy = sums.tolist()
    # What is left of a constant's variance is rounding, a tiny share of its square.
    varies = n > 1 and n * xx - x * x > 1e-12 * n * xx and n * yy - y * y > 1e-12 * n * yy
    return (n * xy - x * y) / math.sqrt((n * xx - x * x) * (n * yy - y * y)) if varies else math.nan


def check_against_the_slow_step(
    tree: oracle.Tree,
    *,
    variants: int,
    seed: int,
    sequences: int = 2,
    settings: LossConfig | None = None,
    gradients: bool = False,
    masked: bool = False,
    rebuild: int = 1,
    **options: object,
) -> None:
    """Loss, its parts, the metrics and on request every gradient of `losses` equal the slow step's."""
    focuses, length = equal_lengths(tree, sequences, variants, seed)
    model = build_step(tree, Given(focuses), settings=settings, seed=seed, **options)
    tokens, seeds = random_tokens(tree, sequences, seed), seeds_for(sequences, variants)
    loss_mask = random_mask(tree, sequences, seed) if masked else None
    slow = SlowStep(model, tree)
    loss, statistics = model(tokens, seeds, length, loss_mask, rebuild)
    groups = rebuilt_groups(model, tree, seeds, rebuild) if model.reconstruction is not None else ()
    wanted = slow.losses(tokens.tolist(), focuses, None if loss_mask is None else loss_mask.tolist(), groups, rebuild)
    assert loss.item() == pytest.approx(wanted.loss.item(), abs=1e-5, rel=1e-5)
    check_statistics(statistics, wanted, tree, model)
    if gradients:
        loss.backward()
        wanted.loss.backward()
        for name, parameter in model.named_parameters():
            expected = slow.p[name.removeprefix("model.")].grad
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            expected = torch.zeros_like(parameter, dtype=torch.float64) if expected is None else expected
            torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-3, msg=f"gradient of {name}")


def random_mask(tree: oracle.Tree, sequences: int, seed: int) -> Tensor:
    """About half of the targets; the last sequence has one alone, before the cursor."""
    mask = torch.rand(sequences, tree.window, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[-1] = torch.arange(tree.window) == 1
    return mask


def rebuilt_groups(model: Step, tree: oracle.Tree, seeds: Tensor, blocks: int) -> list[list[int]]:
    """Which groups of neighbouring blocks are rebuilt: the first in an order that the first variant's seed draws."""
    groups = tree.window // tree.block_size // blocks
    count = max(1, round(groups * model.settings.fraction))
    chosen = []
    for seed in seeds[:, 0].tolist():
        draw = splitmix(seed % 2**64, 0x7265636F)
        order = [(splitmix(draw, group) ^ 2**63, group) for group in range(groups)]  # as signed numbers
        chosen.append([group for _, group in sorted(order)[:count]])
    return chosen


def check_statistics(found: StepMetrics, wanted: Outcome, tree: oracle.Tree, model: Step) -> None:
    means = oracle.metrics(
        tree, [(e, [j._replace(nll=number(j.nll), delta=number(j.delta)) for j in js]) for e, js in wanted.rows]
    )
    advantages = means.pop("mc/adv_delta")
    means |= {
        "train/loss": [wanted.loss.item()],
        "train/loss_lod0": wanted.baseline,
    }
    if model.lensnet is not None:
        means |= {
            "mc/policy_score_abs_mean": wanted.absolute,
            "mc/policy_score_std_mean": wanted.spreads,
            "mc/lens_loss": [wanted.parts["lens"].item()],
        }
    if model.settings.distillation:
        means["mc/gist_kl"] = wanted.divergences
    if model.reconstruction is not None:
        means["mc/reconstruction_loss"] = wanted.told
    if wanted.correlations:
        means["mc/preference_agreement"] = wanted.agreements
        means["mc/preference_strength"] = wanted.strengths
        assert found.sums["mc/preference_pair_count"] == len(wanted.agreements)
        assert found.samples["mc/preference_corr"].tolist() == pytest.approx(wanted.correlations, abs=1e-4, nan_ok=True)
        assert pearson_of_sums(found.moments["mc/pref_span_corr"]) == pytest.approx(
            correlation(wanted.span_pairs), abs=1e-4, nan_ok=True
        )
    own = {name for name in found.means if name.startswith("loss/")} | {"mc/gist_delta_penalty"}
    penalty, sequences = found.means["mc/gist_delta_penalty"].tolist()
    assert penalty / sequences == pytest.approx(wanted.parts["penalty"].item(), abs=1e-5)
    assert found.means.keys() - own == means.keys()
    for name, values in means.items():
        total, count = found.means[name].tolist()
        assert count == len(values), name
        assert total == pytest.approx(sum(values), abs=1e-4, rel=1e-5), name
    assert found.samples["mc/adv_delta"].tolist() == pytest.approx(advantages, abs=1e-5, nan_ok=True)
    if model.lensnet is None:
        assert found.moments == {}
        return
    moments = found.moments["mc/pref_score_corr"]
    assert moments[0] == len(wanted.score_pairs)
    assert pearson_of_sums(moments) == pytest.approx(correlation(wanted.score_pairs), abs=1e-4, nan_ok=True)


def check_everything_learns(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    trained: Iterable[nn.Parameter],
    steps: int = 4,
) -> None:
    """Within a few steps of AdamW on `trained`, every parameter of the model has a gradient and has moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reached: set[str] = set()
    optimizer = torch.optim.AdamW(list(trained), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        model.zero_grad()
        loss_of(step).backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.count_nonzero())}
        optimizer.step()
    assert sorted(before.keys() - reached) == [], "parameters without a gradient"
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == [], "parameters that did not move"
