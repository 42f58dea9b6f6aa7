"""A slow training step: one sequence, one variant, one entry at a time, in float64, written from docs/concepts.md.

Networks that have an oracle of their own elsewhere (GistNet) are called on one node at a time; the base model, the
contexts, the comparison and all losses are done again here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import Step

Vector = Tensor


def norm(x: Vector) -> Vector:
    return x / (x.square().mean() + torch.finfo(torch.float32).eps).sqrt()


def number(x: Tensor | float) -> float:
    return x.detach().item() if isinstance(x, Tensor) else x


def average(values: Sequence[Tensor | float]) -> Tensor:
    """Their mean; 0 where there are none."""
    return oracle.mean(values) + torch.zeros((), dtype=torch.float64)


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's, from the textbook; NaN where a side is constant."""
    n = len(pairs)
    if n < 2:
        return math.nan
    mx, my = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    xx, yy = sum((x - mx) ** 2 for x, _ in pairs), sum((y - my) ** 2 for _, y in pairs)
    if xx * yy < 1e-20:
        return math.nan
    return sum((x - mx) * (y - my) for x, y in pairs) / math.sqrt(xx * yy)


@dataclass
class Variant:
    """One context that was run and judged."""

    focus: oracle.Focus
    entries: list[oracle.Entry]
    tail_mask: list[oracle.Judged]
    seen: list[oracle.Entry]
    scores: list[Tensor]
    divergence: dict[int, Tensor]
    """By target: KL from the baseline's prediction."""
    dropped: list[oracle.Judged]
    """The same context without its gists."""


@dataclass
class Outcome:
    """The loss, its parts, and the values behind each metric."""

    loss: Tensor
    parts: dict[str, Tensor]
    correlations: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    span_pairs: list[tuple[float, float]] = field(default_factory=list)
    score_pairs: list[tuple[float, float]] = field(default_factory=list)
    absolute: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    rows: list[tuple[list[oracle.Entry], list[oracle.Judged]]] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)


class SlowStep:
    """The oracle of the train step, with copies of its parameters in float64."""

    def __init__(self, model: Step, tree: oracle.Tree) -> None:
        self.tree, self.gpt, self.gistnet, self.lensnet = tree, model.gpt, model.gistnet, model.lensnet
        self.settings: LossConfig = model.settings
        self.p = {
            name.removeprefix("model."): p.detach().double().requires_grad_() for name, p in model.named_parameters()
        }

    # ---- networks ---------------------------------------------------------------------------------
    def table(self, embeddings: list[Vector], gist_inputs: list[Vector]) -> dict[tuple[int, int, int], Vector]:
        """(LOD, first token, slot) -> embedding; GistNet sees one node at a time, made of what is `readable`."""
        own = {n.removeprefix("gistnet."): p for n, p in self.p.items() if n.startswith("gistnet.")}
        found = {(0, t, 0): e for t, e in enumerate(embeddings)}
        if self.gistnet is None:
            return found
        for lod in range(1, self.tree.levels + 1):
            below, span = self.tree.block_size ** (lod - 1), self.tree.block_size**lod
            for node in range(self.tree.window // span):
                starts = range(node * span, (node + 1) * span, below)
                slots = self.tree.slots if lod > 1 else 1
                if lod == 1 or self.gistnet.reads_tokens:
                    children = torch.stack(gist_inputs[node * span : (node + 1) * span])
                else:
                    children = torch.stack([found[lod - 1, start, slot] for start in starts for slot in range(slots)])
                gists = torch.func.functional_call(self.gistnet, own, (children[None, None], lod))
                for slot in range(self.tree.slots):
                    found[lod, node * span, slot] = gists[0, 0, slot]
        return found

    def table_of(self, tokens: list[int]) -> dict[tuple[int, int, int], Vector]:
        """Of a sequence, in whatever way its GistNet reads it."""
        embeddings = [self.p["gpt.token_embed.weight"][t] for t in tokens[: self.tree.window]]
        if self.gistnet is None or self.gistnet.reads_layer == 0:
            return self.table(embeddings, embeddings)
        states = self.states(embeddings, oracle.build_context(self.tree, [0] * self.tree.blocks))
        return self.table(embeddings, states[self.gistnet.reads_layer])

    def rotated(self, x: Vector, entry: oracle.Entry) -> Vector:
        mu, sigma = oracle.position(entry, self.gpt.positions.placement)
        half = len(x) // 2
        frequencies = [self.gpt.positions.base ** (-2 * i / len(x)) for i in range(half)]
        damping = [math.exp(-((sigma * f) ** 2) / 2) if self.gpt.positions.smoothing else 1.0 for f in frequencies]
        c = x.new_tensor([math.cos(f * mu) * d for f, d in zip(frequencies, damping, strict=True)])
        s = x.new_tensor([math.sin(f * mu) * d for f, d in zip(frequencies, damping, strict=True)])
        return torch.cat((x[:half] * c - x[half:] * s, x[:half] * s + x[half:] * c))

    def hidden(self, embeddings: list[Vector], entries: list[oracle.Entry]) -> list[Vector]:
        return [norm(x) for x in self.states(embeddings, entries)[-1]] if entries else []

    def states(self, embeddings: list[Vector], entries: list[oracle.Entry]) -> list[list[Vector]]:
        """After 0, 1, 2 ... blocks."""
        found = [embeddings]
        lod_embed = self.p["gpt.lod_embed.weight"]
        xs = [norm(x) + lod_embed[e.lod] for x, e in zip(embeddings, entries, strict=True)]
        for layer in range(self.gpt.depth):
            w = {n.split(".", 3)[3]: p for n, p in self.p.items() if n.startswith(f"gpt.blocks.{layer}.")}
            size = self.gpt.head_width
            queries, keys, values = [], [], []
            for x, entry in zip(xs, entries, strict=True):
                n = norm(x)
                q, k, v = (w[f"attention.{part}.weight"] @ n for part in ("query", "key", "value"))
                queries.append([self.rotated(norm(part), entry) for part in q.split(size)])
                keys.append([self.rotated(norm(part), entry) for part in k.split(size)])
                values.append(v.split(size))
            attended = []
            all_keys = [torch.stack([k[h] for k in keys]) for h in range(self.gpt.heads)]
            all_values = [torch.stack([v[h] for v in values]) for h in range(self.gpt.heads)]
            for i in range(len(xs)):
                heads = []
                for h in range(self.gpt.heads):
                    logits = all_keys[h][: i + 1] @ queries[i][h] / math.sqrt(size)
                    if "attention.gist_bias_embed" in w:
                        table = w["attention.gist_bias_embed"]
                        nothing = table.new_zeros(())
                        logits = logits + torch.stack(
                            [table[e.lod - 1, h] if e.lod else nothing for e in entries[: i + 1]]
                        )
                    weight = logits.softmax(0)
                    heads.append(weight @ all_values[h][: i + 1])
                attended.append(w["attention.out.weight"] @ torch.cat(heads))
            xs = [x + a for x, a in zip(xs, attended, strict=True)]
            xs = [x + w["down.weight"] @ (w["up.weight"] @ norm(x)).relu().square() for x in xs]
            found.append(xs)
        return found

    def predictions(self, embeddings: list[Vector], entries: list[oracle.Entry]) -> list[Vector]:
        """Log-probabilities of the whole vocabulary at every entry."""
        return [(self.p["gpt.lm_head.weight"] @ h).log_softmax(0) for h in self.hidden(embeddings, entries)]

    def nll(self, said: list[Vector], entries: list[oracle.Entry], tokens: list[int]) -> list[Tensor]:
        """Of every entry; one that predicts nothing gets a value that nothing may use."""
        return [
            -of[tokens[e.end]] if e.predicts else of.new_tensor(math.nan) for of, e in zip(said, entries, strict=True)
        ]

    def score(self, embedding: Vector, entry: oracle.Entry) -> Tensor:
        return (embedding.detach() @ self.p["lensnet.direction"] + self.p["lensnet.by_lod"][entry.lod]).tanh()

    # ---- the step ---------------------------------------------------------------------------------
    def losses(
        self,
        batch: list[list[int]],
        focuses: list[list[oracle.Focus]],
        loss_mask: list[list[bool]] | None = None,
        groups: Sequence[Sequence[int]] = (),
        blocks: int = 1,
    ) -> Outcome:
        """`groups` are the groups of `blocks` neighbouring blocks that are rebuilt of each sequence."""
        tree, o = self.tree, self.settings
        baselines, sequences, told = [], [], []
        raw = oracle.build_context(tree, [0] * tree.blocks)
        outcome = Outcome(loss=torch.zeros(()), parts={})
        for row, (tokens, proposed) in enumerate(zip(batch, focuses, strict=True)):
            counts = [True] * tree.window if loss_mask is None else loss_mask[row]
            embeddings = [self.p["gpt.token_embed.weight"][t] for t in tokens[: tree.window]]
            known = self.predictions(embeddings, raw)
            baseline = self.nll(known, raw, tokens)
            mine = [nll for nll, count in zip(baseline, counts, strict=True) if count]
            baselines.append(average(mine))
            outcome.baseline += [number(nll) for nll in mine]
            table = self.table_of(tokens)
            sequences.append([self.variant(focus, table, tokens, known, baseline, counts) for focus in proposed])
            if groups:
                told.append(average([self.told(table, tokens, group, blocks, outcome) for group in groups[row]]))
        every = [v for variants in sequences for v in variants]
        parts = {
            "baseline": average(baselines),
            "variant": average([average([j.nll for j in v.tail_mask]) for v in every]),
            "penalty": average([average([j.delta for j in v.tail_mask]).relu() for v in every]),
            "kl": average([self.distillation(v, outcome) for v in every]),
            "told": average(told),
            "lens": self.lens(sequences, outcome) if self.lensnet is not None else torch.zeros(()),
        }
        outcome.parts = parts
        outcome.loss = (
            o.next_token * parts["baseline"]
            + o.variants * parts["variant"]
            + o.delta_penalty * parts["penalty"]
            + o.distillation * parts["kl"]
            + o.reconstruction * parts["told"]
            + parts["lens"]
        )
        for v in every:
            self.describe(v, outcome)
        return outcome

    def variant(
        self,
        focus: oracle.Focus,
        table: dict[tuple[int, int, int], Vector],
        tokens: list[int],
        known: list[Vector],
        baseline: list[Tensor],
        counts: list[bool],
    ) -> Variant:
        every = oracle.build_context(self.tree, focus)
        bare = [e for e in every if e.lod == 0]
        entries = every if self.gistnet is not None else bare
        partners = [b.detach() for b in baseline]

        def run(entries: list[oracle.Entry]) -> tuple[list[Vector], list[oracle.Judged]]:
            said = self.predictions([table[e.lod, e.start, e.slot] for e in entries], entries)
            tail_mask = oracle.score(entries, self.nll(said, entries, tokens), partners)
            return said, [j for j in tail_mask if counts[j.entry.end - 1]]

        said, tail_mask = run(entries)
        divergence = {}
        for e, of in zip(entries, said, strict=True):
            teacher = known[e.end - 1].detach()
            divergence[e.end] = sum(
                p.exp() * (p - q) for p, q in zip(teacher, of, strict=True)
            )  # the last slot's stays
        seen = [e for e in entries if e.end <= self.tree.cursor] if self.lensnet is not None else []
        scores = [self.score(table[e.lod, e.start, e.slot], e) for e in seen]
        with torch.no_grad():
            dropped = run(bare)[1]
        return Variant(focus, entries, tail_mask, seen, scores, divergence, dropped)

    def distillation(self, variant: Variant, outcome: Outcome) -> Tensor:
        """Mean KL, weighted by what dropping the gists costs at the same target."""
        cost = {j.entry.end: max(0.0, number(j.delta)) for j in variant.dropped} if self.gistnet is not None else {}
        ends = [j.entry.end for j in variant.tail_mask]
        outcome.divergences += [number(variant.divergence[end]) for end in ends]
        weights = [1 + self.settings.contrast * math.tanh(cost.get(end, 0.0)) for end in ends]
        total = sum(w * variant.divergence[end] for w, end in zip(weights, ends, strict=True))
        return total / sum(weights) if weights else average([])

    def told(
        self,
        table: dict[tuple[int, int, int], Vector],
        tokens: list[int],
        group: int,
        blocks: int,
        outcome: Outcome,
    ) -> Tensor:
        """Mean NLL of the tokens of neighbouring blocks: their gists, `begin`, then the tokens one after another."""
        tree, size = self.tree, blocks * self.tree.block_size
        k, first = tree.block_size, group * size
        gists = [(block, slot) for block in range(blocks) for slot in range(tree.slots)]
        read = [table[1, first + block * k, slot] for block, slot in gists]
        read += [self.p["losses.reconstruction.begin_embed"]] + [table[0, first + i, 0] for i in range(size - 1)]
        entries = [oracle.Entry(block * k, (block + 1) * k, 1, slot, tree.slots) for block, slot in gists]
        entries += [oracle.Entry(size + i, size + i + 1, 0, 0, 1) for i in range(size)]
        said = self.predictions(read, entries)[len(gists) :]
        nll = [-of[tokens[first + i]] for i, of in enumerate(said)]
        outcome.told += [number(x) for x in nll]
        return average(nll)

    def lens(self, sequences: list[list[Variant]], outcome: Outcome) -> Tensor:
        o, every = self.settings, [v for variants in sequences for v in variants]
        loss = o.lens * o.balance * average([self.budget(v) for v in every])
        paired = [pair for variants in sequences for pair in combinations(variants, 2)]
        terms = [self.preference(one, other, outcome) for one, other in paired]
        if o.kind == "preference":
            return loss + o.lens * average(terms)
        return loss + o.lens * average([self.utility(v) for v in every])

    def judgement(self, variant: Variant) -> float:
        tail_mask = variant.tail_mask
        if self.settings.condition == "drop":
            # Where a block ends at the cursor, its own target is nobody's once it is dropped: it judges no context.
            last = self.tree.cursor if self.tree.cursor % self.tree.block_size == 0 else None
            tail_mask = [j for j in variant.dropped if j.entry.end != last]
        return oracle.tail_delta(self.tree, [j._replace(delta=number(j.delta)) for j in tail_mask])

    def budget(self, variant: Variant) -> Tensor:
        expand = collapse = torch.zeros((), dtype=torch.float64)
        for entry, score in zip(variant.seen, variant.scores, strict=True):
            mass = score.abs() * entry.span / entry.slots
            if score > 0 and entry.lod > 0:
                expand = expand + mass
            if score < 0 and oracle.can_collapse(self.tree, entry):
                collapse = collapse + mass
        total = expand + collapse
        return ((expand - collapse) / total).square() if total > 0 else total

    def preference(self, one: Variant, other: Variant, outcome: Outcome) -> Tensor:
        o, tree = self.settings, self.tree
        worse, better = (one, other) if self.judgement(one) > self.judgement(other) else (other, one)
        strength = abs(self.judgement(one) - self.judgement(other))
        sides = [oracle.block_means(tree, worse.seen, worse.scores)]
        if o.sides == "both":
            sides.append(oracle.block_means(tree, better.seen, better.scores))
        terms, up, down, votes, signs = [], [], [], [], []
        for means in sides:
            for block in range(tree.blocks):
                if worse.focus[block] == better.focus[block] or strength == 0:  # equally good: no preference
                    continue
                sign = 1.0 if better.focus[block] < worse.focus[block] else -1.0
                score = means[block]
                logit = sign * score * max(1.0, strength) / o.temperature
                terms.append(torch.log1p(torch.exp(-logit)) * math.tanh(strength))
                (up if sign > 0 else down).append(score)
                votes.append(sign * number(score))
                signs.append((number(score), sign))
                outcome.span_pairs.append((number(score), sign * math.tanh(strength)))
        outcome.correlations.append(correlation(signs))
        if terms:
            vote = sum(votes)
            outcome.agreements.append(1.0 if vote > 0 else 0.5 if vote == 0 else 0.0)
            outcome.strengths.append(strength)
        loss = oracle.mean(terms) + torch.zeros(())
        if up and down:
            loss = loss + o.rank_weight * (o.rank_margin - (oracle.mean(up) - oracle.mean(down))).relu()
        return loss

    def utility(self, variant: Variant) -> Tensor:
        wanted = math.tanh(self.judgement(variant) / self.settings.utility_scale)
        errors = [(score - wanted) ** 2 for entry, score in zip(variant.seen, variant.scores, strict=True) if entry.lod]
        return oracle.mean(errors) + torch.zeros(())

    def describe(self, variant: Variant, outcome: Outcome) -> None:
        outcome.rows.append((variant.entries, variant.tail_mask))
        if self.lensnet is None:
            return
        values = [number(s) for s in variant.scores]
        outcome.absolute += [abs(v) for v in values]
        middle = oracle.mean(values)
        outcome.spreads.append(math.sqrt(oracle.mean([(v - middle) ** 2 for v in values])))
        spans = oracle.span_deltas(variant.tail_mask, self.tree.delta_horizon)
        for entry, value in zip(variant.seen, values, strict=True):
            if entry.lod and entry.predicts and entry.start in spans:
                outcome.score_pairs.append((value, number(oracle.mean(spans[entry.start]))))
