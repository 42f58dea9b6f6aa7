"""LensNet's objective, one block and one pair at a time, written from docs/concepts.md; and random cases for it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import combinations

import torch
from hypothesis import strategies as st
from torch import Tensor

from mcframe.context.delta_nll import PairedNLL, pair_nll
from mcframe.context.focus_ops import block_means
from mcframe.context.preference_pairs import preference_pairs
from mcframe.context.working_context import WorkingContext, build_context
from mcframe.hookspecs import LensNet, LensPass, ModelShape, StepMetrics, StepView, UncompressedPass, VariantPass
from mcframe.losses.lens_metrics import lens_metrics
from tests.support import oracle
from tests.support.generators import focus_tensor, geometry_of, trees
from tests.support.loss_config import LossConfig
from tests.support.step_oracle import correlation, number

SOMETHING = 0.0, 0.02, -0.4, 0.3, 2.5
"""Verdicts in nats: few, so that some contexts are equally good."""


class Said(LensNet):
    """Returns fixed scores."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        return self.scores


@dataclass
class Case:
    """Judged contexts with scores, as tensors and as the lists that the oracle walks through."""

    tree: oracle.Tree
    variants: int
    focuses: list[list[int]]
    verdicts: list[float]
    scores: Tensor
    previous: Tensor
    uncompressed: Tensor
    nll: Tensor
    baseline: Tensor
    context: WorkingContext = field(init=False)
    whole: WorkingContext = field(init=False)

    def __post_init__(self) -> None:
        self.whole = build_context(focus_tensor(self.focuses), geometry_of(self.tree))
        self.context = self.whole.before_cursor()
        self.scores = self.scores[:, : self.context.length].clone().requires_grad_()
        self.previous = self.previous[:, : self.context.length].clone().requires_grad_()
        self.uncompressed = self.uncompressed.clone().requires_grad_()

    @property
    def pairing(self) -> PairedNLL:
        return pair_nll(self.whole, self.nll, self.baseline)

    @property
    def verdict(self) -> Tensor:
        return torch.tensor(self.verdicts, dtype=torch.float64)

    def lens_pass(self, settings: LossConfig, scale: float | Tensor | None = None) -> LensPass:
        block_scores, delta = block_means(self.scores, self.context), self.verdict
        pairs = None
        if self.variants > 1:
            pairs = preference_pairs(self.context, delta, block_scores, self.variants, settings.sides)
        nats = torch.as_tensor(settings.scale_nats if scale is None else scale, dtype=torch.float64)
        embeddings = torch.zeros(*self.context.token.shape, 1)
        return LensPass(
            self.context, embeddings, self.scores, block_scores, delta, nats, pairs, self.uncompressed
        )  # fmt: skip

    def objective(
        self, settings: LossConfig, scale: float | Tensor | None = None, average: Tensor | None = None
    ) -> tuple[Tensor, StepMetrics]:
        """Return the weighted sum of LensNet's losses and their metrics, divided by `settings.lens`."""
        lens = self.lens_pass(settings, scale)
        variants = VariantPass(lens.embeddings, lens.embeddings, self.pairing, lens=lens)
        sequences = len(self.focuses) // self.variants
        inputs = torch.zeros(sequences, 1)
        passed = UncompressedPass(*[inputs] * 7)
        seeds = torch.zeros(sequences, self.variants, dtype=torch.long)
        view = StepView(self.context.tree, passed, None, variants, seeds, *[lambda *_: inputs] * 3)
        total, metrics = torch.zeros((), dtype=torch.float64), lens_metrics(lens, self.pairing)
        for loss in settings.lens_losses(ModelShape(1, self.context.tree)):
            if loss.name == "ema_kl":
                if average is None:
                    continue
                loss.average = Said(average)
            if self.variants == 1 and "pairs" in loss.needs:
                continue
            term = loss(view)
            total = total + loss.weight / settings.lens * term.loss.mean()
            metrics |= term.metrics if isinstance(term.metrics, StepMetrics) else StepMetrics()
        return total, metrics

    # ---- what the reference walks through ------------------------------------------------------------
    @property
    def pairs(self) -> list[tuple[int, int]]:
        starts = range(0, len(self.focuses), self.variants)
        return [pair_nll for start in starts for pair_nll in combinations(range(start, start + self.variants), 2)]

    def seen(self, row: int) -> list[oracle.Entry]:
        return [e for e in oracle.build_context(self.tree, self.focuses[row]) if e.end <= self.tree.cursor]

    def own(self, row: int, scores: Tensor) -> list[Tensor]:
        return [scores[row, i] for i in range(len(self.seen(row)))]

    def of_blocks(self, row: int, scores: Tensor | None = None) -> list[Tensor]:
        values = self.own(row, self.scores if scores is None else scores)
        return [torch.as_tensor(v, dtype=torch.float64) for v in oracle.block_means(self.tree, self.seen(row), values)]

    def acts(self, row: int, block: int) -> bool:
        """The block can be expanded or collapsed: the entries that it is read from say so."""
        covering = [e for e in self.seen(row) if oracle.covers(e, self.tree, block)]
        return any(e.lod > 0 or oracle.can_collapse(self.tree, e) for e in covering)


@st.composite
def cases(draw, max_variants: int = 3, min_variants: int = 1) -> Case:
    tree = draw(trees(max_window=48, max_levels=2))
    rng = random.Random(draw(st.integers(0, 2**32)))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    variants, sequences = draw(st.integers(min_variants, max_variants)), draw(st.integers(1, 3))
    return random_case(tree, variants, sequences, rng, generator)


def random_case(
    tree: oracle.Tree, variants: int, sequences: int, rng: random.Random, generator: torch.Generator
) -> Case:
    rows = variants * sequences

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        tree=tree,
        variants=variants,
        focuses=[oracle.random_focus(tree, rng, rng.choice((0.1, 0.5, 0.9))) for _ in range(rows)],
        verdicts=[rng.choice(SOMETHING) for _ in range(rows)],
        scores=some(rows, tree.window).tanh(),
        previous=some(rows, tree.window).tanh(),
        uncompressed=some(sequences, tree.blocks).tanh(),
        nll=some(rows, tree.window).abs(),
        baseline=some(sequences, tree.window).abs(),
    )


@dataclass
class Wanted:
    """The loss and the values behind each metric."""

    loss: Tensor
    correlations: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    attributed: list[float] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    span_pairs: list[tuple[float, float]] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)


def slow_objective(case: Case, o: LossConfig, scale: float, with_previous: bool) -> Wanted:
    wanted = Wanted(torch.zeros((), dtype=torch.float64))
    rows = range(len(case.focuses))
    loss = o.balance * average([slow_budget(case, row) for row in rows])
    preferences = [slow_preference(case, a, b, o, scale, wanted) for a, b in case.pairs]
    if o.kind == "span_utility":
        loss = loss + average([slow_utility(case, row, o) for row in rows])
    elif case.variants > 1 and o.kind == "span_difference":
        loss = loss + average([slow_difference(case, a, b, o) for a, b in case.pairs])
    elif case.variants > 1:
        loss = loss + average(preferences)
    if o.attribution:
        loss = loss + o.attribution * average([slow_attribution(case, a, b, o, scale, wanted) for a, b in case.pairs])
    if with_previous:
        kls = [slow_kl(case, row, o) for row in rows]
        wanted.kls = [number(kl) for kl in kls]
        loss = loss + o.ema_kl * average(kls)
    wanted.loss = loss
    return wanted


def average(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / max(1, len(values))


def slow_budget(case: Case, row: int) -> Tensor:
    expand = collapse = torch.zeros((), dtype=torch.float64)
    for entry, score in zip(case.seen(row), case.own(row, case.scores), strict=True):
        mass = score.abs() * entry.span / entry.slots
        if score > 0 and entry.lod > 0:
            expand = expand + mass
        if score < 0 and oracle.can_collapse(case.tree, entry):
            collapse = collapse + mass
    total = expand + collapse
    return ((expand - collapse) / total).square() if total > 0 else total


def slow_preference(case: Case, one: int, other: int, o: LossConfig, scale: float, wanted: Wanted) -> Tensor:
    worse, better = (one, other) if case.verdicts[one] > case.verdicts[other] else (other, one)
    nats = case.verdicts[worse] - case.verdicts[better]
    strength = nats / scale
    sharpness = max(1.0, strength) / o.temperature
    terms, logits, up, down, signs = [], [], [], [], []
    for side in (worse,) if o.sides == "worse" else (worse, better):
        scores = case.of_blocks(side)
        for block in range(case.tree.blocks):
            difference = case.focuses[worse][block] - case.focuses[better][block]
            if difference == 0 or nats == 0 or not case.acts(side, block):
                continue
            sign = 1.0 if difference > 0 else -1.0
            score = scores[block]
            logits.append(number(sign * score * sharpness))
            terms.append(math.tanh(strength) * torch.log1p(torch.exp(-sign * score * sharpness)))
            (up if sign > 0 else down).append(score)
            signs.append((number(score), sign))
            wanted.span_pairs.append((number(score), sign * math.tanh(strength)))
    wanted.correlations.append(correlation(signs))
    if not terms:
        return average([])
    vote = math.fsum(score * sign for score, sign in signs)
    wanted.agreements.append(1.0 if vote > 0 else 0.5 if vote == 0 else 0.0)
    wanted.strengths.append(nats)
    loss = average(terms)
    if up and down:
        loss = loss + o.rank_weight * (o.rank_margin - (average(up) - average(down))).relu()
    margin = sum(logits) / len(logits)
    return loss * (2 / (1 + math.exp(margin))) ** o.focal_gamma


def slow_utility(case: Case, row: int, o: LossConfig) -> Tensor:
    wish = math.tanh(case.verdicts[row] / o.utility_scale)
    scores = zip(case.seen(row), case.own(row, case.scores), strict=True)
    return average([(score - wish) ** 2 for entry, score in scores if entry.lod])


def slow_difference(case: Case, a: int, b: int, o: LossConfig) -> Tensor:
    of_a, of_b = case.of_blocks(a), case.of_blocks(b)
    blocks = range(case.tree.blocks)
    less_in_a = [block for block in blocks if case.focuses[a][block] > case.focuses[b][block]]
    less_in_b = [block for block in blocks if case.focuses[a][block] < case.focuses[b][block]]
    if not less_in_a or not less_in_b:
        return average([])
    wish = math.tanh((case.verdicts[a] - case.verdicts[b]) / o.utility_scale)
    gists = average([of_a[block] for block in less_in_a]) - average([of_b[block] for block in less_in_b])
    raw = average([of_b[block] for block in less_in_a]) - average([of_a[block] for block in less_in_b])
    return ((gists - wish) ** 2 + (raw - wish) ** 2) / 2


def slow_attribution(case: Case, one: int, other: int, o: LossConfig, scale: float, wanted: Wanted) -> Tensor:
    """The pair's chance to be told the right way round, when every entry that is saved costs its block's score."""
    worse, better = (one, other) if case.verdicts[one] > case.verdicts[other] else (other, one)
    nats = case.verdicts[worse] - case.verdicts[better]
    if nats == 0 or case.focuses[one] == case.focuses[other]:
        return average([])
    scores, tree = case.uncompressed[one // case.variants], case.tree
    given_up = [average([]), average([])]
    for side, row in enumerate((worse, better)):
        for block, lod in enumerate(case.focuses[row]):
            if lod:
                blocks = tree.block_size ** (lod - 1)  # of the node that the block belongs to
                saved = (blocks * tree.block_size - tree.slots) / blocks
                given_up[side] = given_up[side] + scores[block] * saved / (tree.block_size - tree.slots)
    margin = given_up[0] - given_up[1]
    wanted.attributed.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
    sharpness = max(1.0, nats / scale) / o.temperature
    return -torch.log(1 / (1 + torch.exp(-margin * sharpness))) * math.tanh(nats / scale)


def slow_kl(case: Case, row: int, o: LossConfig) -> Tensor:
    """Of two coins, from their probabilities."""
    now, former = case.of_blocks(row), case.of_blocks(row, case.previous.detach())
    terms = []
    for block in range(case.tree.blocks):
        if case.acts(row, block):
            q = 1 / (1 + torch.exp(-now[block] / o.temperature))
            p = 1 / (1 + torch.exp(-former[block] / o.temperature))
            terms.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    return average(terms)
