"""What `hookspecs.LensNet` asks, of every LensNet that comes with the framework."""

import math
import random
import re
from dataclasses import replace

import pytest
import torch

from mcframe.context.entry_nll import mean_block_nll, mean_entry_nll
from mcframe.context.working_context import WorkingContext, build_context
from mcframe.errors import UserError
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
    "surprised transformer": lambda shape: TransformerLensNet(shape, layers=1, heads=2, surprise=True),
    "mlp": MLPLensNet,
    "reading mlp": lambda shape: MLPLensNet(shape, hidden=6, layers=3, surprise=True, embeddings=True),
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


def seen_of(focus: torch.Tensor, length: int | None = None, seed: int = 2) -> WorkingContext:
    """What LensNet is given, with the NLL that some of them read."""
    context = build_context(focus, geometry_of(TREE), length).before_cursor()
    return replace(context, nll=mean_entry_nll(nll_of(focus.shape[0], seed), context))


def nll_of(rows: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(rows, TREE.window, generator=torch.Generator().manual_seed(seed)) * 8


def embeddings_for(context: WorkingContext, scale: float = 1.0) -> torch.Tensor:
    size = (context.focus.shape[0], context.length, 8)
    return torch.randn(size, generator=torch.Generator().manual_seed(1)) * scale


def test_recency_rises_from_the_start_to_the_cursor():
    context = seen_of(focus_tensor(focuses()))
    scores = build("recency")(context, embeddings_for(context))
    for row, focus in enumerate(focuses()):
        entries = [e for e in oracle.build_context(TREE, focus) if e.end <= TREE.cursor]
        wanted = [2 * ((e.start + e.end - 1) / 2) / TREE.cursor - 1 for e in entries]
        assert scores[row, : len(entries)].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", LEARNED)
def test_an_entry_is_judged_by_its_level_span_and_distance(kind):
    """The same embedding everywhere: only what an entry is can tell one from another."""
    lensnet = build(kind)
    context = seen_of(focus_tensor([[1, 0, 0, 2, 2, 2] + [0] * 10]))
    same = torch.ones(1, context.length, 8)
    scores = lensnet(context, same)[0]
    valid = int(context.valid.sum())
    assert scores[:valid].unique().numel() > valid // 2
    # level alone: relabel one entry, everything else as it was
    raw = seen_of(torch.zeros(1, TREE.blocks, dtype=torch.long))
    same = torch.ones(1, raw.length, 8)
    lod = raw.lod.clone()
    lod[0, 9] = 1
    changed = lensnet(replace(raw, lod=lod), same) - lensnet(raw, same)
    assert changed[0, 9].abs() > 1e-5
    # distance alone: the same entries further from the cursor
    far = replace(raw, tree=geometry_of(TREE._replace(window=100)))
    assert (lensnet(far, same) - lensnet(raw, same)).abs().max() > 1e-5


@pytest.mark.parametrize("kind", [kind for kind in LEARNED if "transformer" in kind])
def test_it_looks_both_ways_and_at_the_embeddings(kind):
    lensnet = build(kind)
    raw = seen_of(torch.zeros(1, TREE.blocks, dtype=torch.long))
    embeddings = embeddings_for(raw)
    before = lensnet(raw, embeddings)
    for place in (0, raw.length - 1):
        other = embeddings.clone()
        other[0, place] += 1
        moved = (lensnet(raw, other) - before).abs()[0] > 1e-7
        assert moved.float().mean() > 0.8


def test_an_impossible_width_is_refused():
    with pytest.raises(UserError, match="heads = 3"):
        TransformerLensNet(ModelShape(8, geometry_of(TREE)), heads=3)


# ---- what is scored alone --------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mlp", "reading mlp"])
def test_mlp_scores_each_entry_alone(kind):
    """An entry's score is the one it has in a row of its own, and moves with nothing but that entry."""
    lensnet = build(kind)
    context = seen_of(focus_tensor(focuses()))
    embeddings = embeddings_for(context)
    scores = lensnet(context, embeddings)
    for place in range(0, context.length, 5):
        cut = {name: getattr(context, name)[:, place : place + 1] for name in ("token", "lod", "valid", "nll")}
        alone = lensnet(replace(context, **cut), embeddings[:, place : place + 1])
        torch.testing.assert_close(alone[:, 0], scores[:, place], atol=1e-6, rtol=1e-5)
    moved = lensnet(context, embeddings + torch.randn(embeddings.shape)) != scores
    assert bool(moved[context.valid].any()) == (kind == "reading mlp")


def test_mlp_is_its_oracle():
    """Entry by entry, layer by layer, in plain arithmetic."""
    lensnet = build("reading mlp").double()
    context = seen_of(focus_tensor(focuses()))
    embeddings = embeddings_for(context).double()
    features = entry_features(context, surprise=True).double()
    found = lensnet(context, embeddings)
    for row, place in ((0, 0), (1, 7), (4, 20)):
        x = features[row, place] @ lensnet.feature_embed.weight.T + lensnet.feature_embed.bias
        x = x + lensnet.lod_embed[context.lod[row, place]] + lensnet.read.weight @ normed(embeddings[row, place])
        for layer in lensnet.layers:
            x = x + layer.weight @ normed(x).relu() ** 2
        wanted = torch.tanh(lensnet.score_embed.weight[0] @ normed(x).relu() ** 2 + lensnet.score_embed.bias[0])
        torch.testing.assert_close(found[row, place], wanted)


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt()


def test_mlp_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    lensnet = MLPLensNet(ModelShape(8, geometry_of(TREE)), hidden=4, layers=2, surprise=True, embeddings=True).double()
    context = seen_of(focus_tensor(focuses(2)))
    embeddings = embeddings_for(context).double()
    names = list(dict(lensnet.named_parameters()))

    def scores(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(lensnet, dict(zip(names, values, strict=True)), (context, embeddings))

    assert torch.autograd.gradcheck(scores, tuple(lensnet.parameters()))


# ---- surprise --------------------------------------------------------------------------------------
@pytest.mark.parametrize("tail", [7, 0])  # without a tail, two tokens beyond the last whole block are seen
def test_surprise_is_the_squashed_distance_of_a_block_from_the_mean_block(tail):
    tree, nll = TREE._replace(tail=tail), nll_of(5)
    lensnet = SurpriseLensNet(ModelShape(8, geometry_of(tree)), scale=2.0)
    context = build_context(focus_tensor(focuses()), geometry_of(tree)).before_cursor()
    context = replace(context, nll=mean_entry_nll(nll, context))
    scores = lensnet(context, embeddings_for(context))
    for row, focus in enumerate(focuses()):
        hard = []
        for block in range(tree.blocks):
            width = tree.block_size ** max(focus[block], 1)
            start = block * tree.block_size // width * width
            heard = [nll[row, t - 1].item() for t in range(start, start + width) if 0 < t < tree.cursor]
            hard.append(oracle.mean(heard) if heard else None)
        known = [each for each in hard if each is not None]
        mean = oracle.mean(known)
        spread = oracle.mean([(each - mean) ** 2 for each in known]) ** 0.5
        for place, entry in enumerate(e for e in oracle.build_context(tree, focus) if e.end <= tree.cursor):
            block = entry.start // tree.block_size
            wanted = math.tanh((hard[block] - mean) / spread / 2.0) if block < tree.blocks else 0.0
            assert scores[row, place].item() == pytest.approx(wanted, abs=1e-5)


def test_surprise_orders_blocks_as_the_evaluation_does():
    raw = seen_of(torch.zeros(5, TREE.blocks, dtype=torch.long))
    scores = build("surprise")(raw, embeddings_for(raw))
    whole = TREE.cursor // TREE.block_size
    mine = scores[:, : whole * TREE.block_size : TREE.block_size]
    theirs = mean_block_nll(nll_of(5), geometry_of(TREE))[:, :whole]
    assert torch.equal(mine.argsort(dim=1), theirs.argsort(dim=1))


def test_where_all_is_as_hard_nothing_is_asked_for():
    raw = seen_of(torch.zeros(1, TREE.blocks, dtype=torch.long))
    flat = replace(raw, nll=torch.where(raw.token > 0, 2.5, 0.0))
    assert build("surprise")(flat, embeddings_for(raw)).abs().max() < 0.01  # rounding


@pytest.mark.parametrize("kind", ["surprise", "reading mlp", "surprised transformer"])
def test_what_reads_the_nll_says_so_and_misses_it(kind):
    lensnet = build(kind)
    assert lensnet.reads_nll
    assert not build("mlp").reads_nll
    context = replace(seen_of(focus_tensor(focuses())), nll=None)
    with pytest.raises(ValueError, match="reads_nll"):
        lensnet(context, embeddings_for(context))
    other = seen_of(focus_tensor(focuses()), seed=9)
    before = seen_of(focus_tensor(focuses()))
    embeddings = embeddings_for(before)
    assert (lensnet(other, embeddings) - lensnet(before, embeddings)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (MLPLensNet, {"hidden": 0}, "mlp.hidden is 0"),
        (MLPLensNet, {"layers": 0}, "mlp.layers is 0"),
        (SurpriseLensNet, {"scale": 0.0}, "surprise.scale is 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, options, named):
    with pytest.raises(UserError, match=re.escape(named)):
        make(ModelShape(8, geometry_of(TREE)), **options)
