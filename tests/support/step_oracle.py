"""A slow training step: one sequence, one variant, one entry at a time, in float64, written from docs/concepts.md.

GistNet, which has an oracle of its own, is called on one node at a time; the base model, the contexts, the comparison
and all losses are computed again here and in `lens_oracle`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from tests.support import oracle
from tests.support.lens_oracle import LensFigures, ScoredContext, attribution, average, lens_loss, number
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import Step

Vector = Tensor
Table = dict[tuple[int, int, int], Vector]
"""(LOD, first token, slot) -> embedding."""


def norm(x: Vector) -> Vector:
    return x / (x.square().mean() + torch.finfo(torch.float32).eps).sqrt()


def rotated(x: Vector, cosine: Vector, sine: Vector) -> Vector:
    first, second = x.chunk(2)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine))


@dataclass
class Variant:
    """A context that was run and compared with the baseline."""

    focus: oracle.Focus
    entries: list[oracle.Entry]
    entry_deltas: list[oracle.EntryDelta]
    scores: list[Tensor]
    divergence: dict[int, Tensor]
    """By target: KL from the baseline's prediction."""
    dropped: list[oracle.EntryDelta]
    """The same context without its gists."""


@dataclass
class Outcome(LensFigures):
    """The loss, its parts, and the values of which each metric is made."""

    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    parts: dict[str, Tensor] = field(default_factory=dict)
    rows: list[tuple[list[oracle.Entry], list[oracle.EntryDelta]]] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    reconstruction: list[float] = field(default_factory=list)


class SlowStep:
    """The oracle of the train step, with copies of its parameters in float64."""

    def __init__(self, model: Step, tree: oracle.Tree) -> None:
        self.tree, self.gpt, self.gistnet, self.lensnet = tree, model.gpt, model.gistnet, model.lensnet
        self.settings: LossConfig = model.settings
        self.p = {
            name.removeprefix("model."): p.detach().double().requires_grad_() for name, p in model.named_parameters()
        }

    # ---- networks ---------------------------------------------------------------------------------
    def table(self, embeddings: list[Vector], gist_inputs: list[Vector]) -> Table:
        """Return the node table; GistNet sees one node at a time."""
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

    def table_of(self, tokens: list[int]) -> Table:
        """Return the node table of a sequence, from the states that its GistNet reads."""
        embeddings = [self.p["gpt.token_embed.weight"][t] for t in tokens[: self.tree.window]]
        if self.gistnet is None or self.gistnet.reads_layer == 0:
            return self.table(embeddings, embeddings)
        states = self.states(embeddings, oracle.build_context(self.tree, [0] * self.tree.blocks))
        return self.table(embeddings, states[self.gistnet.reads_layer])

    def rotation(self, entry: oracle.Entry, width: int) -> tuple[Vector, Vector]:
        mu, sigma = oracle.position(entry, self.gpt.positions.placement)
        frequencies = [self.gpt.positions.base ** (-2 * i / width) for i in range(width // 2)]
        damping = [math.exp(-((sigma * f) ** 2) / 2) if self.gpt.positions.smoothing else 1.0 for f in frequencies]
        return tuple(
            torch.tensor([turn(f * mu) * d for f, d in zip(frequencies, damping, strict=True)], dtype=torch.float64)
            for turn in (math.cos, math.sin)
        )

    def hidden(self, embeddings: list[Vector], entries: list[oracle.Entry]) -> list[Vector]:
        return [norm(x) for x in self.states(embeddings, entries)[-1]] if entries else []

    def states(self, embeddings: list[Vector], entries: list[oracle.Entry]) -> list[list[Vector]]:
        """Return the states after 0, 1, 2 ... blocks."""
        found = [embeddings]
        lod_embed = self.p["gpt.lod_embed.weight"]
        xs = [norm(x) + lod_embed[e.lod] for x, e in zip(embeddings, entries, strict=True)]
        size = self.gpt.head_width
        rotations = [self.rotation(entry, size) for entry in entries]
        for layer in range(self.gpt.depth):
            w = {n.split(".", 3)[3]: p for n, p in self.p.items() if n.startswith(f"gpt.blocks.{layer}.")}
            queries, keys, values = [], [], []
            for x, rotation in zip(xs, rotations, strict=True):
                n = norm(x)
                q, k, v = (w[f"attention.{part}.weight"] @ n for part in ("query", "key", "value"))
                queries.append([rotated(norm(part), *rotation) for part in q.split(size)])
                keys.append([rotated(norm(part), *rotation) for part in k.split(size)])
                values.append(v.split(size))
            attended = []
            all_keys = [torch.stack([k[h] for k in keys]) for h in range(self.gpt.heads)]
            all_values = [torch.stack([v[h] for v in values]) for h in range(self.gpt.heads)]
            no_bias = torch.zeros(self.tree.levels, self.gpt.heads, dtype=torch.float64)
            biases = torch.cat((no_bias[:1], w.get("attention.gist_bias_embed", no_bias)))
            biases = biases[[e.lod for e in entries]]
            for i in range(len(xs)):
                heads = []
                for h in range(self.gpt.heads):
                    logits = all_keys[h][: i + 1] @ queries[i][h] / math.sqrt(size)
                    weight = (logits + biases[: i + 1, h]).softmax(0)
                    heads.append(weight @ all_values[h][: i + 1])
                attended.append(w["attention.out.weight"] @ torch.cat(heads))
            xs = [x + a for x, a in zip(xs, attended, strict=True)]
            xs = [x + w["down.weight"] @ (w["up.weight"] @ norm(x)).relu().square() for x in xs]
            found.append(xs)
        return found

    def predictions(self, embeddings: list[Vector], entries: list[oracle.Entry]) -> list[Vector]:
        """Return the log-probabilities of all tokens at every entry."""
        return [(self.p["gpt.lm_head.weight"] @ h).log_softmax(0) for h in self.hidden(embeddings, entries)]

    def nll(self, predicted: list[Vector], entries: list[oracle.Entry], tokens: list[int]) -> list[Tensor]:
        """Return the NLL of every entry, NaN where it predicts nothing."""
        return [
            -of[tokens[e.end]] if e.predicts else of.new_tensor(math.nan)
            for of, e in zip(predicted, entries, strict=True)
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
        baselines, sequences, reconstructed = [], [], []
        raw = oracle.build_context(tree, [0] * tree.blocks)
        outcome = Outcome()
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
                reconstructed.append(
                    average([self.reconstruction(table, tokens, group, blocks, outcome) for group in groups[row]])
                )
        every = [v for variants in sequences for v in variants]
        parts = {
            "baseline": average(baselines),
            "variant": average([average([j.nll for j in v.entry_deltas]) for v in every]),
            "penalty": average([average([j.delta for j in v.entry_deltas]).relu() for v in every]),
            "kl": average([self.distillation(v, outcome) for v in every]),
            "reconstruction": average(reconstructed),
            "lens": torch.zeros(()),
        }
        if self.lensnet is not None:
            scored = [[self.scored(v) for v in variants] for variants in sequences]
            parts["lens"] = o.lens * (
                lens_loss(scored, o, o.scale_nats, outcome) + self.attribution(batch, scored, outcome)
            )
        outcome.parts = parts
        outcome.loss = (
            o.next_token * parts["baseline"]
            + o.variants * parts["variant"]
            + o.delta_penalty * parts["penalty"]
            + o.distillation * parts["kl"]
            + o.reconstruction * parts["reconstruction"]
            + parts["lens"]
        )
        for v in every:
            outcome.rows.append((v.entries, v.entry_deltas))
            if self.lensnet is not None:
                outcome.add_scores(self.scored(v), v.entry_deltas)
        return outcome

    def variant(
        self,
        focus: oracle.Focus,
        table: Table,
        tokens: list[int],
        known: list[Vector],
        baseline: list[Tensor],
        counts: list[bool],
    ) -> Variant:
        every = oracle.build_context(self.tree, focus)
        bare = [e for e in every if e.lod == 0]
        entries = every if self.gistnet is not None else bare
        partners = [b.detach() for b in baseline]

        def run(entries: list[oracle.Entry]) -> tuple[list[Vector], list[oracle.EntryDelta]]:
            predicted = self.predictions([table[e.lod, e.start, e.slot] for e in entries], entries)
            entry_deltas = oracle.pair_nll(entries, self.nll(predicted, entries, tokens), partners)
            return predicted, [j for j in entry_deltas if counts[j.entry.end - 1]]

        predicted, entry_deltas = run(entries)
        divergence = {}
        for e, of in zip(entries, predicted, strict=True):
            teacher = known[e.end - 1].detach()
            divergence[e.end] = (teacher.exp() * (teacher - of)).sum()  # the last slot's stays
        prefix = self.prefix(entries) if self.lensnet is not None else []
        scores = [self.score(table[e.lod, e.start, e.slot], e) for e in prefix]
        with torch.no_grad():
            dropped = run(bare)[1]
        return Variant(focus, entries, entry_deltas, scores, divergence, dropped)

    def distillation(self, variant: Variant, outcome: Outcome) -> Tensor:
        """Mean KL, weighted by what dropping the gists costs at the same target."""
        cost = {j.entry.end: max(0.0, number(j.delta)) for j in variant.dropped} if self.gistnet is not None else {}
        ends = [j.entry.end for j in variant.entry_deltas if self.settings.gist_targets or not j.entry.lod]
        outcome.divergences += [number(variant.divergence[end]) for end in ends]
        weights = [1 + self.settings.contrast * math.tanh(cost.get(end, 0.0)) for end in ends]
        total = sum(w * variant.divergence[end] for w, end in zip(weights, ends, strict=True))
        return total / sum(weights) if weights else average([])

    def reconstruction(
        self,
        table: Table,
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
        predicted = self.predictions(read, entries)[len(gists) :]
        nll = [-of[tokens[first + i]] for i, of in enumerate(predicted)]
        outcome.reconstruction += [number(x) for x in nll]
        return average(nll)

    def scored(self, variant: Variant) -> ScoredContext:
        deltas = variant.entry_deltas
        if self.settings.condition == "drop":
            # Where a block ends at the cursor, no entry predicts its own target once it is dropped.
            last = self.tree.cursor if self.tree.cursor % self.tree.block_size == 0 else None
            deltas = [j for j in variant.dropped if j.entry.end != last]
        tail_delta = oracle.tail_delta(self.tree, [j._replace(delta=number(j.delta)) for j in deltas])
        return ScoredContext(self.tree, variant.focus, self.prefix(variant.entries), variant.scores, tail_delta)

    def attribution(
        self, batch: list[list[int]], scored: list[list[ScoredContext]], outcome: Outcome
    ) -> Tensor | float:
        """Return the weighted loss of the scores of the uncompressed contexts."""
        o, terms = self.settings, []
        if not o.attribution:
            return 0.0
        raw = self.prefix(oracle.build_context(self.tree, [0] * self.tree.blocks))
        for tokens, variants in zip(batch, scored, strict=True):
            scores = [self.score(self.p["gpt.token_embed.weight"][tokens[e.start]], e) for e in raw]
            blocks = oracle.block_means(self.tree, raw, scores)
            terms += [attribution(*pair, blocks, o, o.scale_nats, outcome) for pair in combinations(variants, 2)]
        return o.attribution * average(terms)

    def prefix(self, entries: list[oracle.Entry]) -> list[oracle.Entry]:
        return [e for e in entries if e.end <= self.tree.cursor]
