"""The checks themselves, as functions: tests call them on the code, and planted bugs must make them fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from mcframe.context.step_metrics import StepMetrics
from tests.support import oracle
from tests.support.lens_oracle import LensFigures, correlation, number
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import FixedVariants, Step, build_step, equal_lengths, random_tokens, seeds_for
from tests.support.step_oracle import Outcome, SlowStep


def pearson_of_sums(sums: Tensor) -> float:
    n, x, y, xx, yy, xy = sums.tolist()
    # The remaining variance of a constant is rounding, a tiny fraction of its square.
    varies = n > 1 and n * xx - x * x > 1e-12 * n * xx and n * yy - y * y > 1e-12 * n * yy
    return (n * xy - x * y) / math.sqrt((n * xx - x * x) * (n * yy - y * y)) if varies else math.nan


def check_against_the_slow_step(
    tree: oracle.Tree,
    *,
    variants: int,
    seed: int,
    sequences: int = 1,
    settings: LossConfig | None = None,
    gradients: bool = False,
    masked: bool = False,
    rebuild: int = 1,
    **options: object,
) -> None:
    """Loss, its parts, the metrics and on request every gradient of `losses` equal the slow step's."""
    focuses, length = equal_lengths(tree, sequences, variants, seed)
    model = build_step(tree, FixedVariants(focuses), settings=settings, seed=seed, **options)
    tokens, seeds = random_tokens(tree, sequences, seed), seeds_for(sequences, variants)
    loss_mask = random_mask(tree, sequences, seed) if masked else None
    slow = SlowStep(model, tree)
    loss, statistics = model(tokens, seeds, length, loss_mask, rebuild)
    groups = rebuilt_groups(model, tree, seeds, rebuild) if model.reconstruction is not None else ()
    rows = None if loss_mask is None else loss_mask.tolist()
    reference = slow.losses(tokens.tolist(), focuses, rows, groups, rebuild)
    assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-5, rel=1e-5)
    check_statistics(statistics, reference, tree, model, sequences)
    if gradients:
        loss.backward()
        reference.loss.backward()
        for name, parameter in model.named_parameters():
            found, expected = (
                torch.zeros_like(p, dtype=torch.float64) if p.grad is None else p.grad.double()
                for p in (parameter, slow.p[name.removeprefix("model.")])
            )
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3, msg=f"gradient of {name}")


def check_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """The same names have the same values, NaN included."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def random_mask(tree: oracle.Tree, sequences: int, seed: int) -> Tensor:
    """About half of the targets; the last sequence has one alone, before the cursor."""
    mask = torch.rand(sequences, tree.window, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[-1] = torch.arange(tree.window) == 1
    return mask


def rebuilt_groups(model: Step, tree: oracle.Tree, seeds: Tensor, blocks: int) -> list[list[int]]:
    """Return the groups of neighbouring blocks that are rebuilt: the first in an order drawn by the first seed."""
    groups = tree.window // tree.block_size // blocks
    count = max(1, round(groups * model.settings.fraction))
    chosen = []
    for seed in seeds[:, 0].tolist():
        draw = oracle.splitmix(seed % 2**64, 0x7265636F)
        order = [(oracle.splitmix(draw, group) ^ 2**63, group) for group in range(groups)]  # as signed numbers
        chosen.append([group for _, group in sorted(order)[:count]])
    return chosen


def check_means(found: StepMetrics, expected: Mapping[str, Sequence[float]], abs: float = 1e-4) -> None:
    """Every mean has the sum and the number of the expected values."""
    for name, values in expected.items():
        total, count = found.means[name].tolist()
        assert count == len(values), name
        assert total == pytest.approx(sum(values), abs=abs, rel=1e-5), name


def check_lens_metrics(found: StepMetrics, figures: LensFigures, *, pairs: bool) -> set[str]:
    """Metrics of scores and of pairs are those of the values; return the names of the means."""
    means = {"mc/policy_score_abs_mean": figures.absolute, "mc/policy_score_std_mean": figures.spreads}
    moments = {"mc/pref_score_corr": figures.score_pairs}
    if pairs:
        means |= {"mc/preference_agreement": figures.agreements, "mc/preference_strength": figures.strengths}
        moments["mc/pref_span_corr"] = figures.span_pairs
        assert found.sums["mc/preference_pair_count"] == len(figures.agreements)
        assert found.samples["mc/preference_corr"].tolist() == pytest.approx(
            figures.correlations, abs=1e-4, nan_ok=True
        )
    check_means(found, means)
    assert found.moments.keys() == moments.keys()
    for name, points in moments.items():
        assert found.moments[name][0] == len(points)
        assert pearson_of_sums(found.moments[name]) == pytest.approx(correlation(points), abs=1e-4, nan_ok=True)
    return set(means)


def check_statistics(found: StepMetrics, reference: Outcome, tree: oracle.Tree, model: Step, sequences: int) -> None:
    rows = [(e, [j._replace(nll=number(j.nll), delta=number(j.delta)) for j in js]) for e, js in reference.rows]
    means = oracle.metrics(tree, rows)
    advantages = means.pop("mc/adv_delta")
    means |= {"train/loss": [reference.loss.item()] * sequences, "train/loss_lod0": reference.baseline}
    if model.settings.distillation:
        means["mc/gist_kl"] = reference.divergences
    if model.reconstruction is not None:
        means["mc/reconstruction_loss"] = reference.reconstruction
    if model.lensnet is not None:
        means["mc/lens_loss"] = [reference.parts["lens"].item()] * sequences
    if model.settings.attribution:
        means["mc/attribution_agreement"] = reference.attributed
    check_means(found, means)
    names = means.keys() | {name for name in found.means if name.startswith("loss/")} | {"mc/gist_delta_penalty"}
    if model.lensnet is not None:
        names |= check_lens_metrics(found, reference, pairs=bool(reference.correlations))
    assert found.means.keys() == names
    penalty, sequences = found.means["mc/gist_delta_penalty"].tolist()
    assert penalty / sequences == pytest.approx(reference.parts["penalty"].item(), abs=1e-5)
    assert found.samples["mc/adv_delta"].tolist() == pytest.approx(advantages, abs=1e-5, nan_ok=True)
    assert model.lensnet is not None or found.moments == {}


def check_everything_learns(
    model: nn.Module, loss_of: Callable[[int], Tensor], trained: Iterable[nn.Parameter], steps: int = 4
) -> None:
    """Within a few steps of AdamW on `trained`, every parameter of the model has a gradient and has moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reached: set[str] = set()
    optimizer = torch.optim.AdamW(list(trained), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        model.zero_grad()
        loss_of(step).backward()
        reached |= with_gradient(model)
        optimizer.step()
    assert sorted(before.keys() - reached) == [], "parameters without a gradient"
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == [], "parameters that did not move"


def with_gradient(model: nn.Module) -> set[str]:
    """Return the names of the parameters that have a gradient other than 0."""
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.count_nonzero())}
