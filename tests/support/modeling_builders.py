"""Small step modules with random weights, and focuses of equal length for them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.working_context import WorkingContext, build_context
from mcframe.hookspecs import BaseShape, GistNet, LensNet, Loss, ModelShape, Sequences, StepMetrics, VariantStrategy
from mcframe.modeling.gpt import GPT
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.rope import GaussianRope
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe_plugins.gistnet import MeanGistNet, TransformerGistNet
from mcframe_plugins.lensnet import MLPLensNet, RecencyLensNet, SurpriseLensNet, TransformerLensNet
from mcframe_plugins.loss.reconstruction import Reconstruction
from tests.support import oracle
from tests.support.generators import focus_tensor, geometry_of
from tests.support.loss_config import LossConfig

VOCABULARY = 13
TREE = oracle.Tree(window=29, block_size=3, levels=2, slots=1, tail=6, sink=0)


class EntryLens(LensNet):
    """Scores each entry on its own, so that a slow reference can do the same."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(shape.width))
        self.by_lod = nn.Parameter(torch.randn(shape.tree.levels + 1))

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        return (embeddings @ self.direction + self.by_lod[context.lod]).tanh()


class FixedVariants(VariantStrategy):
    """Proposes fixed focuses, [B][V][blocks]."""

    def __init__(self, focuses: Sequence[Sequence[oracle.Focus]]) -> None:
        self.focuses = torch.stack([focus_tensor(of_sequence) for of_sequence in focuses])
        self.count = self.focuses.shape[1]

    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        return self.focuses


class Reader(GistNet):
    """A learned map of each slot's weighted sum of children: of embeddings or states, of tokens or of gists below."""

    def __init__(self, shape: ModelShape, reads_layer: int = 0, reads_tokens: bool = False) -> None:
        super().__init__()
        self.reads_layer, self.reads_tokens, self.slots = reads_layer, reads_tokens, shape.tree.slots
        self.maps = nn.Parameter(torch.randn(shape.tree.levels, shape.width, shape.width))

    def forward(self, children: Tensor, lod: int) -> Tensor:
        position = torch.arange(1, children.shape[2] + 1, dtype=children.dtype, device=children.device)
        weights = torch.stack([torch.cos(position * (slot + 1)) for slot in range(self.slots)])
        return weights @ children @ self.maps[lod - 1]


GISTNETS = {
    "mean": MeanGistNet,
    "states": lambda shape: Reader(shape, reads_layer=1),
    "last states": lambda shape: Reader(shape, reads_layer=2, reads_tokens=True),
    "tokens": lambda shape: Reader(shape, reads_tokens=True),
    "transformer": lambda shape: TransformerGistNet(shape, layers=1, heads=2),
}
LENSNETS = {
    "entry": EntryLens,
    "mlp": lambda shape: MLPLensNet(shape, hidden=8, surprise=True, embeddings=True),
    "recency": RecencyLensNet,
    "surprise": SurpriseLensNet,
    "transformer": lambda shape: TransformerLensNet(shape, layers=1, heads=2),
}


def randomise(module: nn.Module, seed: int) -> None:
    """Weights that make every part matter: nothing is zero, embeddings have unit scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 1.0 if "embed" in name or parameter.dim() < 2 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build_gpt(tree: oracle.Tree, seed: int = 0, **options: object) -> GPT:
    rotation = {"base": 100.0} | {key: options.pop(key) for key in ("placement", "smoothing") if key in options}
    settings = {"depth": 2, "width": 16, "heads": 2} | options
    gpt = GPT(BaseShape(geometry_of(tree), VOCABULARY, partial(GaussianRope, **rotation)), **settings)
    randomise(gpt, seed)
    return gpt


class Step(TrainStep):
    """A train step with a short call, and the parts of its model as attributes."""

    settings: LossConfig

    def forward(
        self, tokens: Tensor, seeds: Tensor, length: int, loss_mask: Tensor | None = None, blocks: int = 1
    ) -> tuple[Tensor, StepMetrics]:
        """Run a micro-batch; `blocks` neighbouring blocks are reconstructed at once."""
        if self.reconstruction is not None:
            self.reconstruction.stages, self.reconstruction.stage = (blocks,), 0
        return super().forward(StepBatch(tokens, seeds, length, loss_mask))

    def __getattr__(self, name: str) -> Any:
        if name in ("gpt", "gistnet", "lensnet", "strategy", "tree"):
            return getattr(self.model, name)
        return super().__getattr__(name)

    @property
    def reconstruction(self) -> Reconstruction | None:
        return next((loss for loss in self.losses.each() if isinstance(loss, Reconstruction)), None)

    @property
    def ema(self) -> nn.Module:
        return self.losses["ema_kl"].average


def build_step(
    tree: oracle.Tree,
    strategy: VariantStrategy,
    *,
    gistnet: str | None = "transformer",
    lensnet: str | None = "entry",
    settings: LossConfig | None = None,
    losses: Sequence[Loss] = (),
    seed: int = 0,
    separator: int | None = None,
    **options: object,
) -> Step:
    """Build a small step with random weights; `losses` are added to those of the settings."""
    gpt, settings = build_gpt(tree, seed, **options), settings or LossConfig()
    shape = ModelShape(gpt.width, geometry_of(tree))
    gist = None if gistnet is None else GISTNETS[gistnet](shape)
    lens = None if lensnet is None or gist is None else LENSNETS[lensnet](shape)
    built = settings.losses(shape)
    reconstruction = next((loss for loss in built if loss.name == "reconstruction"), None) if gist is not None else None
    for number, module in enumerate((gist, lens, reconstruction), start=1):
        if module is not None:
            randomise(module, seed + number)
    if lens is not None and lensnet in ("entry", "mlp"):  # or every score is at the end of its range
        with torch.no_grad():
            for parameter in lens.parameters():
                parameter.mul_(0.2)
    model = MegaContextModel(gpt, gist, lens, strategy, shape.tree, separator)
    return assemble(model, settings, [*built, *losses])


def assemble(model: MegaContextModel, settings: LossConfig, losses: Sequence[Loss] | None = None) -> Step:
    """Put a model and its losses together."""
    if losses is None:
        losses = settings.losses(ModelShape(model.gpt.width, model.tree))
    if model.strategy.count == 1:
        losses = [loss for loss in losses if "pairs" not in loss.needs]
    step = Step(model, losses, settings.lens_targets)
    step.settings = settings
    return step


def step_of_fixed_variants(
    sequences: int, variants: int = 2, tree: oracle.Tree = TREE, seed: int = 0, **options: object
) -> tuple[Step, int, list[list[list[int]]]]:
    """Build a step whose variants are fixed; return it with their length and their focuses [B][V][blocks]."""
    focuses, length = equal_lengths(tree, sequences, variants, seed)
    return build_step(tree, FixedVariants(focuses), **options), length, focuses


def random_tokens(tree: oracle.Tree, sequences: int, seed: int) -> Tensor:
    return torch.randint(VOCABULARY, (sequences, tree.window + 1), generator=torch.Generator().manual_seed(seed))


def equal_lengths(tree: oracle.Tree, sequences: int, variants: int, seed: int) -> tuple[list[list[list[int]]], int]:
    """Different valid focuses of one common length: [B][V][blocks], and the length."""
    rng = random.Random(seed)
    by_length: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for _ in range(400):
        focus = tuple(oracle.random_focus(tree, rng, rng.choice((0.2, 0.4, 0.6))))
        by_length[len(oracle.build_context(tree, focus))].add(focus)
    rich = sorted(length for length, found in by_length.items() if len(found) >= max(4, variants))
    length = rng.choice(rich)
    pool = sorted(by_length[length])
    return [[list(f) for f in rng.sample(pool, variants)] for _ in range(sequences)], length


def mixed_context(rows: int = 3) -> WorkingContext:
    """Return padded working contexts with entries of every LOD."""
    rng = random.Random(2)
    focuses = [oracle.random_focus(TREE, rng, 0.5) for _ in range(rows)]
    return build_context(focus_tensor(focuses), geometry_of(TREE))


def seeds_for(sequences: int, variants: int) -> Tensor:
    return torch.arange(sequences * variants).view(sequences, variants) * 7919 + 11
