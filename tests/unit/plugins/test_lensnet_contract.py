"""First-party LensNets: oracles of their scores, and the features that they read."""

import math
import random
from dataclasses import replace

import pytest
import torch

from mcframe.context.entry_nll import mean_block_nll, mean_entry_nll
from mcframe.context.working_context import WorkingContext, build_context
from mcframe.hookspecs import ModelShape
from mcframe_plugins.lensnet import MLPLensNet, RecencyLensNet, SurpriseLensNet, TransformerLensNet
from mcframe_plugins.lensnet.features import entry_features
from tests.support import oracle
from tests.support.generators import focus_tensor, geometry_of

TREE = oracle.Tree(window=50, block_size=3, levels=2, slots=2, tail=7, sink=0)
KINDS = {
    "recency": RecencyLensNet,
    "transformer": lambda shape: TransformerLensNet(shape, layers=2, heads=2),
    "narrow transformer": lambda shape: TransformerLensNet(shape, layers=1, heads=3, width=6),
    "transformer with surprise": lambda shape: TransformerLensNet(shape, layers=1, heads=2, surprise=True),
    "mlp": MLPLensNet,
    "mlp with embeddings": lambda shape: MLPLensNet(shape, hidden=6, layers=3, surprise=True, embeddings=True),
    "surprise": SurpriseLensNet,
}
LEARNED = [kind for kind in KINDS if kind not in ("recency", "surprise")]


@pytest.fixture(params=KINDS)
def lensnet(request):
    return build(request.param)


def build(kind: str):
    torch.manual_seed(0)
    return KINDS[kind](ModelShape(8, geometry_of(TREE))).eval()


def focuses(rows: int = 5) -> list[list[int]]:
    rng = random.Random(3)
    return [oracle.random_focus(TREE, rng, 0.5) for _ in range(rows)]


def prefix_of(focus: torch.Tensor, length: int | None = None, seed: int = 2) -> WorkingContext:
    """Return the context before the cursor, with the NLL that some LensNets read."""
    context = build_context(focus, geometry_of(TREE), length).before_cursor()
    return replace(context, nll=mean_entry_nll(nll_of(focus.shape[0], seed), context))


def nll_of(rows: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(rows, TREE.window, generator=torch.Generator().manual_seed(seed)) * 8


def embeddings_for(context: WorkingContext, scale: float = 1.0) -> torch.Tensor:
    size = (context.focus.shape[0], context.length, 8)
    return torch.randn(size, generator=torch.Generator().manual_seed(1)) * scale


def test_recency_rises_from_the_start_to_the_cursor():
    context = prefix_of(focus_tensor(focuses()))
    scores = build("recency")(context, embeddings_for(context))
    for row, focus in enumerate(focuses()):
        entries = [e for e in oracle.build_context(TREE, focus) if e.end <= TREE.cursor]
        expected = [2 * ((e.start + e.end - 1) / 2) / TREE.cursor - 1 for e in entries]
        assert scores[row, : len(entries)].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", LEARNED)
def test_score_depends_on_level_span_and_distance(kind):
    """All embeddings are equal, so that only level, span and distance distinguish entries."""
    lensnet = build(kind)
    context = prefix_of(focus_tensor([[1, 0, 0, 2, 2, 2] + [0] * 10]))
    same = torch.ones(1, context.length, 8)
    scores = lensnet(context, same)[0]
    valid = int(context.valid.sum())
    assert scores[:valid].unique().numel() > valid // 2
    # level alone: relabel one entry, everything else as it was
    raw = prefix_of(torch.zeros(1, TREE.blocks, dtype=torch.long))
    same = torch.ones(1, raw.length, 8)
    lod = raw.lod.clone()
    lod[0, 9] = 1
    changed = lensnet(replace(raw, lod=lod), same) - lensnet(raw, same)
    assert changed[0, 9].abs() > 1e-5
    # distance alone: the same entries further from the cursor
    far = replace(raw, tree=geometry_of(TREE._replace(window=100)))
    assert (lensnet(far, same) - lensnet(raw, same)).abs().max() > 1e-5


@pytest.mark.parametrize("kind", [kind for kind in LEARNED if "transformer" in kind])
def test_transformer_reads_embeddings_in_both_directions(kind):
    lensnet = build(kind)
    raw = prefix_of(torch.zeros(1, TREE.blocks, dtype=torch.long))
    embeddings = embeddings_for(raw)
    before = lensnet(raw, embeddings)
    for index in (0, raw.length - 1):
        other = embeddings.clone()
        other[0, index] += 1
        moved = (lensnet(raw, other) - before).abs()[0] > 1e-7
        assert moved.float().mean() > 0.8


# ---- MLP -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mlp", "mlp with embeddings"])
def test_mlp_scores_each_entry_alone(kind):
    """The score of an entry equals its score in a row of its own."""
    lensnet = build(kind)
    context = prefix_of(focus_tensor(focuses()))
    embeddings = embeddings_for(context)
    scores = lensnet(context, embeddings)
    for entry in range(0, context.length, 5):
        cut = {name: getattr(context, name)[:, entry : entry + 1] for name in ("token", "lod", "valid", "nll")}
        alone = lensnet(replace(context, **cut), embeddings[:, entry : entry + 1])
        torch.testing.assert_close(alone[:, 0], scores[:, entry], atol=1e-6, rtol=1e-5)
    moved = lensnet(context, embeddings + torch.randn(embeddings.shape)) != scores
    assert bool(moved[context.valid].any()) == (kind == "mlp with embeddings")


def test_mlp_equals_its_oracle():
    """Entry by entry, layer by layer, in plain arithmetic."""
    lensnet = build("mlp with embeddings").double()
    context = prefix_of(focus_tensor(focuses()))
    embeddings = embeddings_for(context).double()
    features = entry_features(context, surprise=True).double()
    found = lensnet(context, embeddings)
    for row, entry in ((0, 0), (1, 7), (4, 20)):
        x = features[row, entry] @ lensnet.feature_embed.weight.T + lensnet.feature_embed.bias
        x = x + lensnet.lod_embed[context.lod[row, entry]] + lensnet.read.weight @ normed(embeddings[row, entry])
        for layer in lensnet.layers:
            x = x + layer.weight @ normed(x).relu() ** 2
        expected = torch.tanh(lensnet.score_embed.weight[0] @ normed(x).relu() ** 2 + lensnet.score_embed.bias[0])
        torch.testing.assert_close(found[row, entry], expected)


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt()


def test_mlp_gradients_equal_finite_differences():
    torch.manual_seed(0)
    lensnet = MLPLensNet(ModelShape(8, geometry_of(TREE)), hidden=3, layers=2, surprise=True, embeddings=True).double()
    context = prefix_of(focus_tensor(focuses(1)))
    embeddings = embeddings_for(context).double()
    names = list(dict(lensnet.named_parameters()))

    def scores(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(lensnet, dict(zip(names, values, strict=True)), (context, embeddings))

    assert torch.autograd.gradcheck(scores, tuple(lensnet.parameters()))


# ---- surprise --------------------------------------------------------------------------------------
@pytest.mark.parametrize("tail", [7, 0])  # without a tail, two tokens follow the last complete block
def test_surprise_is_the_tanh_of_the_standardised_nll_of_a_block(tail):
    tree, nll = TREE._replace(tail=tail), nll_of(5)
    lensnet = SurpriseLensNet(ModelShape(8, geometry_of(tree)), scale=2.0)
    context = build_context(focus_tensor(focuses()), geometry_of(tree)).before_cursor()
    context = replace(context, nll=mean_entry_nll(nll, context))
    scores = lensnet(context, embeddings_for(context))
    for row, focus in enumerate(focuses()):
        nlls = []
        for block in range(tree.blocks):
            width = tree.block_size ** max(focus[block], 1)
            start = block * tree.block_size // width * width
            counted = [nll[row, t - 1].item() for t in range(start, start + width) if 0 < t < tree.cursor]
            nlls.append(oracle.mean(counted) if counted else None)
        known = [each for each in nlls if each is not None]
        mean = oracle.mean(known)
        spread = oracle.mean([(each - mean) ** 2 for each in known]) ** 0.5
        for index, entry in enumerate(e for e in oracle.build_context(tree, focus) if e.end <= tree.cursor):
            block = entry.start // tree.block_size
            expected = math.tanh((nlls[block] - mean) / spread / 2.0) if block < tree.blocks else 0.0
            assert scores[row, index].item() == pytest.approx(expected, abs=1e-5)


def test_surprise_orders_blocks_like_the_evaluation():
    raw = prefix_of(torch.zeros(5, TREE.blocks, dtype=torch.long))
    scores = build("surprise")(raw, embeddings_for(raw))
    complete = TREE.cursor // TREE.block_size
    by_score = scores[:, : complete * TREE.block_size : TREE.block_size]
    by_nll = mean_block_nll(nll_of(5), geometry_of(TREE))[:, :complete]
    assert torch.equal(by_score.argsort(dim=1), by_nll.argsort(dim=1))


def test_surprise_of_equal_blocks_is_zero():
    raw = prefix_of(torch.zeros(1, TREE.blocks, dtype=torch.long))
    flat = replace(raw, nll=torch.where(raw.token > 0, 2.5, 0.0))
    assert build("surprise")(flat, embeddings_for(raw)).abs().max() < 0.01  # rounding


@pytest.mark.parametrize("kind", ["surprise", "mlp with embeddings", "transformer with surprise"])
def test_reader_of_the_nll_declares_it_and_requires_it(kind):
    lensnet = build(kind)
    assert lensnet.reads_nll
    assert not build("mlp").reads_nll
    context = replace(prefix_of(focus_tensor(focuses())), nll=None)
    with pytest.raises(ValueError, match="reads_nll"):
        lensnet(context, embeddings_for(context))
    other = prefix_of(focus_tensor(focuses()), seed=9)
    before = prefix_of(focus_tensor(focuses()))
    embeddings = embeddings_for(before)
    assert (lensnet(other, embeddings) - lensnet(before, embeddings)).abs().max() > 1e-4
