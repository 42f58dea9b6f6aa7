"""LensNet's losses, one block and one pair at a time, written from docs/concepts.md; and random cases for them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
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

FLAT = oracle.Tree(window=40, block_size=4, levels=1, slots=1, tail=5, sink=1, horizon=13)
TALL = oracle.Tree(window=44, block_size=3, levels=2, slots=2, tail=4, sink=0)
TAIL_DELTAS = 0.0, 0.02, -0.4, 0.3, 2.5
"""Nats; few values, so that some contexts are equally good."""


# ---- the reference -------------------------------------------------------------------------------
def number(x: Tensor | float) -> float:
    return x.detach().item() if isinstance(x, Tensor) else x


def average(values: Sequence[Tensor | float]) -> Tensor:
    """Return the mean in float64, 0 without values."""
    return oracle.mean(values) + torch.zeros((), dtype=torch.float64)


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's correlation, NaN where a side is constant."""
    if len(pairs) < 2:
        return math.nan
    mx, my = (oracle.mean(side) for side in zip(*pairs, strict=True))
    xx, yy = sum((x - mx) ** 2 for x, _ in pairs), sum((y - my) ** 2 for _, y in pairs)
    return math.nan if xx * yy < 1e-20 else sum((x - mx) * (y - my) for x, y in pairs) / math.sqrt(xx * yy)


@dataclass
class ScoredContext:
    """A variant with the entries before the cursor, their scores, and its mean ΔNLL after the cursor."""

    tree: oracle.Tree
    focus: oracle.Focus
    prefix: list[oracle.Entry]
    scores: list[Tensor]
    tail_delta: float

    def block_scores(self, scores: Sequence[Tensor] | None = None) -> list[Tensor]:
        values = oracle.block_means(self.tree, self.prefix, self.scores if scores is None else scores)
        return [torch.as_tensor(value, dtype=torch.float64) for value in values]

    def can_change(self, block: int) -> bool:
        """Return whether an entry of the block can be expanded or collapsed."""
        covering = [e for e in self.prefix if oracle.covers(e, self.tree, block)]
        return any(e.lod > 0 or oracle.can_collapse(self.tree, e) for e in covering)


@dataclass
class LensFigures:
    """The values of which each metric is made of LensNet."""

    correlations: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    attributed: list[float] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    span_pairs: list[tuple[float, float]] = field(default_factory=list)
    score_pairs: list[tuple[float, float]] = field(default_factory=list)
    absolute: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)

    def add_scores(self, context: ScoredContext, entry_deltas: Sequence[oracle.EntryDelta]) -> None:
        values = [number(s) for s in context.scores]
        middle = oracle.mean(values)
        self.absolute += [abs(v) for v in values]
        self.spreads.append(math.sqrt(oracle.mean([(v - middle) ** 2 for v in values])))
        spans = oracle.span_deltas(entry_deltas, context.tree.delta_horizon)
        for entry, value in zip(context.prefix, values, strict=True):
            if entry.lod and entry.predicts and entry.start in spans:
                self.score_pairs.append((value, number(oracle.mean(spans[entry.start]))))


def lens_loss(variants: Sequence[Sequence[ScoredContext]], o: LossConfig, scale: float, figures: LensFigures) -> Tensor:
    """Return the loss of the variants of each sequence, without attribution and EMA-KL, divided by `o.lens`."""
    every = [each for of_sequence in variants for each in of_sequence]
    pairs = [pair for of_sequence in variants for pair in combinations(of_sequence, 2)]
    losses = {
        "preference": [preference(one, other, o, scale, figures) for one, other in pairs],
        "span_utility": [span_utility(each, o) for each in every],
        "span_difference": [span_difference(one, other, o) for one, other in pairs],
    }
    return o.balance * average([balance(each) for each in every]) + average(losses[o.kind])


def balance(context: ScoredContext) -> Tensor:
    expand = collapse = torch.zeros((), dtype=torch.float64)
    for entry, score in zip(context.prefix, context.scores, strict=True):
        mass = score.abs() * entry.span / entry.slots
        if score > 0 and entry.lod > 0:
            expand = expand + mass
        if score < 0 and oracle.can_collapse(context.tree, entry):
            collapse = collapse + mass
    total = expand + collapse
    return ((expand - collapse) / total).square() if total > 0 else total


def ordered(one: ScoredContext, other: ScoredContext) -> tuple[ScoredContext, ScoredContext, float]:
    """Return the worse context, the better one, and their difference in nats."""
    worse, better = (one, other) if one.tail_delta > other.tail_delta else (other, one)
    return worse, better, worse.tail_delta - better.tail_delta


def ranked(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def preference(one: ScoredContext, other: ScoredContext, o: LossConfig, scale: float, figures: LensFigures) -> Tensor:
    worse, better, nats = ordered(one, other)
    strength, terms, logits, signs = nats / scale, [], [], []
    sharpness = max(1.0, strength) / o.temperature
    by_sign: dict[float, list[Tensor]] = {1.0: [], -1.0: []}
    for side in (worse,) if o.sides == "worse" else (worse, better):
        for block, score in enumerate(side.block_scores()):
            difference = worse.focus[block] - better.focus[block]
            if difference == 0 or nats == 0 or not side.can_change(block):
                continue
            sign = 1.0 if difference > 0 else -1.0
            logits.append(number(sign * score * sharpness))
            terms.append(math.tanh(strength) * torch.log1p(torch.exp(-sign * score * sharpness)))
            by_sign[sign].append(score)
            signs.append((number(score), sign))
            figures.span_pairs.append((number(score), sign * math.tanh(strength)))
    figures.correlations.append(correlation(signs))
    if not terms:
        return average([])
    figures.agreements.append(ranked(math.fsum(score * sign for score, sign in signs)))
    figures.strengths.append(nats)
    loss = average(terms)
    if all(by_sign.values()):
        loss = loss + o.rank_weight * (o.rank_margin - (average(by_sign[1.0]) - average(by_sign[-1.0]))).relu()
    return loss * (2 / (1 + math.exp(oracle.mean(logits)))) ** o.focal_gamma


def span_utility(context: ScoredContext, o: LossConfig) -> Tensor:
    target = math.tanh(context.tail_delta / o.utility_scale)
    scores = zip(context.prefix, context.scores, strict=True)
    return average([(score - target) ** 2 for entry, score in scores if entry.lod])


def span_difference(one: ScoredContext, other: ScoredContext, o: LossConfig) -> Tensor:
    of_one, of_other, blocks = one.block_scores(), other.block_scores(), range(one.tree.blocks)
    less = [block for block in blocks if one.focus[block] > other.focus[block]]
    more = [block for block in blocks if one.focus[block] < other.focus[block]]
    if not less or not more:
        return average([])
    target = math.tanh((one.tail_delta - other.tail_delta) / o.utility_scale)
    gists = average([of_one[block] for block in less]) - average([of_other[block] for block in more])
    raw = average([of_other[block] for block in less]) - average([of_one[block] for block in more])
    return ((gists - target) ** 2 + (raw - target) ** 2) / 2


def attribution(
    one: ScoredContext,
    other: ScoredContext,
    scores: Sequence[Tensor | float],
    o: LossConfig,
    scale: float,
    figures: LensFigures,
) -> Tensor:
    """Return the loss of a pair if every saved entry costs its block's score in the uncompressed context."""
    worse, better, nats = ordered(one, other)
    if nats == 0 or one.focus == other.focus:
        return average([])
    tree, lost = one.tree, []
    for context in (worse, better):
        lost.append(average([]))
        for block, lod in enumerate(context.focus):
            if lod:
                blocks = tree.block_size ** (lod - 1)  # of the node that the block belongs to
                saved = (blocks * tree.block_size - tree.slots) / blocks
                lost[-1] = lost[-1] + scores[block] * saved / (tree.block_size - tree.slots)
    margin = lost[0] - lost[1]
    figures.attributed.append(ranked(number(margin)))
    sharpness = max(1.0, nats / scale) / o.temperature
    return -torch.log(1 / (1 + torch.exp(-margin * sharpness))) * math.tanh(nats / scale)


def policy_divergence(context: ScoredContext, previous: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the mean KL between two coins for each block that can change, from their probabilities."""
    terms = []
    for block, (now, former) in enumerate(zip(context.block_scores(), context.block_scores(previous), strict=True)):
        if context.can_change(block):
            q, p = (1 / (1 + torch.exp(-score / temperature)) for score in (now, former))
            terms.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    return average(terms)


# ---- cases ---------------------------------------------------------------------------------------
class FixedScores(LensNet):
    """Returns fixed scores."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        return self.scores


@dataclass
class Case:
    """Variants with scores, as tensors and as the lists that the reference reads."""

    tree: oracle.Tree
    variants: int
    focuses: list[list[int]]
    tail_deltas: list[float]
    scores: Tensor
    previous: Tensor
    uncompressed: Tensor
    nll: Tensor
    baseline: Tensor
    context: WorkingContext = field(init=False)
    paired: PairedNLL = field(init=False)

    def __post_init__(self) -> None:
        context = build_context(focus_tensor(self.focuses), geometry_of(self.tree))
        self.paired, self.context = pair_nll(context, self.nll, self.baseline), context.before_cursor()
        self.scores = self.scores[:, : self.context.length].clone().requires_grad_()
        self.previous = self.previous[:, : self.context.length].clone().requires_grad_()
        self.uncompressed = self.uncompressed.clone().requires_grad_()

    @property
    def tail_delta(self) -> Tensor:
        return torch.tensor(self.tail_deltas, dtype=torch.float64)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        starts = range(0, len(self.focuses), self.variants)
        return [pair for start in starts for pair in combinations(range(start, start + self.variants), 2)]

    def lens_pass(self, config: LossConfig, scale: float | Tensor | None = None) -> LensPass:
        block_scores, delta, pairs = block_means(self.scores, self.context), self.tail_delta, None
        if self.variants > 1:
            pairs = preference_pairs(self.context, delta, block_scores, self.variants, config.sides)
        nats = torch.as_tensor(config.scale_nats if scale is None else scale, dtype=torch.float64)
        embeddings = torch.zeros(*self.context.token.shape, 1)
        return LensPass(self.context, embeddings, self.scores, block_scores, delta, nats, pairs, self.uncompressed)

    def lens_loss(
        self, config: LossConfig, scale: float | Tensor | None = None, average: Tensor | None = None
    ) -> tuple[Tensor, StepMetrics]:
        """Return the weighted sum of LensNet's losses, divided by `config.lens`, and their metrics."""
        lens = self.lens_pass(config, scale)
        variants = VariantPass(lens.embeddings, lens.embeddings, self.paired, lens=lens)
        inputs = torch.zeros(len(self.focuses) // self.variants, 1)
        seeds = inputs.long().expand(-1, self.variants)
        passed, no_model = UncompressedPass(*[inputs] * 8), [lambda *_: inputs] * 3
        view = StepView(self.context.tree, passed, None, variants, seeds, *no_model)
        total, metrics = torch.zeros((), dtype=torch.float64), lens_metrics(lens, self.paired)
        for loss in config.lens_losses(ModelShape(1, self.context.tree)):
            if (loss.name == "ema_kl" and average is None) or (self.variants == 1 and "pairs" in loss.needs):
                continue
            if loss.name == "ema_kl":
                loss.average = FixedScores(average)
                loss.steps.fill_(1)
            term = loss(view)
            total = total + loss.weight / config.lens * term.loss.mean()
            metrics |= term.metrics if isinstance(term.metrics, StepMetrics) else StepMetrics()
        return total, metrics

    def row(self, row: int) -> ScoredContext:
        """Return a row as the reference reads it."""
        prefix = [e for e in oracle.build_context(self.tree, self.focuses[row]) if e.end <= self.tree.cursor]
        scores = list(self.scores[row, : len(prefix)])
        return ScoredContext(self.tree, self.focuses[row], prefix, scores, self.tail_deltas[row])

    def slow_loss(self, config: LossConfig, scale: float, with_previous: bool = False) -> tuple[Tensor, LensFigures]:
        """Return what `lens_loss` must return, and the values of which its metrics are made."""
        rows, figures = [self.row(row) for row in range(len(self.focuses))], LensFigures()
        by_sequence = [rows[start : start + self.variants] for start in range(0, len(rows), self.variants)]
        loss = lens_loss(by_sequence, config, scale, figures)
        if config.attribution:
            terms = [
                attribution(rows[a], rows[b], list(self.uncompressed[a // self.variants]), config, scale, figures)
                for a, b in self.pairs
            ]
            loss = loss + config.attribution * average(terms)
        if with_previous:
            previous = zip(rows, self.previous.detach(), strict=True)
            kls = [policy_divergence(row, list(own[: len(row.prefix)]), config.temperature) for row, own in previous]
            figures.kls = [number(kl) for kl in kls]
            loss = loss + config.ema_kl * average(kls)
        for number_of_row, row in enumerate(rows):
            entries = oracle.build_context(self.tree, row.focus)
            nll, baseline = self.nll[number_of_row].tolist(), self.baseline[number_of_row // self.variants].tolist()
            figures.add_scores(row, oracle.pair_nll(entries, nll[: len(entries)], baseline))
        return loss, figures


def random_case(
    tree: oracle.Tree, variants: int, sequences: int, rng: random.Random, generator: torch.Generator
) -> Case:
    rows = variants * sequences

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        tree=tree,
        variants=variants,
        focuses=[oracle.random_focus(tree, rng, rng.choice((0.1, 0.5, 0.9))) for _ in range(rows)],
        tail_deltas=[rng.choice(TAIL_DELTAS) for _ in range(rows)],
        scores=draw(rows, tree.window).tanh(),
        previous=draw(rows, tree.window).tanh(),
        uncompressed=draw(sequences, tree.blocks).tanh(),
        nll=draw(rows, tree.window).abs(),
        baseline=draw(sequences, tree.window).abs(),
    )


def case_of(tree: oracle.Tree, *, variants: int = 2, sequences: int = 8, seed: int = 0) -> Case:
    return random_case(tree, variants, sequences, random.Random(seed), torch.Generator().manual_seed(seed))


@st.composite
def cases(draw, min_variants: int = 1) -> Case:
    tree, seed = draw(trees(max_window=48, max_levels=2)), draw(st.integers(0, 2**31))
    variants, sequences = draw(st.integers(min_variants, 3)), draw(st.integers(1, 3))
    return case_of(tree, variants=variants, sequences=sequences, seed=seed)
