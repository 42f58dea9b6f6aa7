"""What `hookspecs.LensNet` asks, of every LensNet that comes with the framework."""

import random
from dataclasses import replace

import oracle
import pytest
import torch
from generators import focus_tensor, geometry_of

from mcframe.context.working_context import WorkingContext, raw_context, unroll
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape
from mcframe_plugins.lensnet import RecencyLensNet, TransformerLensNet

TREE = oracle.Tree(window=50, block_size=3, levels=2, slots=2, tail=7, sink=0)
KINDS = {
    "recency": RecencyLensNet,
    "transformer": lambda shape: TransformerLensNet(shape, layers=2, heads=2),
    "narrow transformer": lambda shape: TransformerLensNet(shape, layers=1, heads=3, width=6),
}
LEARNED = [kind for kind in KINDS if kind != "recency"]


@pytest.fixture(params=KINDS)
def lensnet(request):
    return build(request.param)


def build(kind: str):
    torch.manual_seed(0)
    return KINDS[kind](ModelShape(8, geometry_of(TREE))).eval()


def focuses(rows: int = 5) -> list[list[int]]:
    rng = random.Random(3)
    return [oracle.random_focus(TREE, rng, 0.5) for _ in range(rows)]


def embeddings_for(context: WorkingContext, scale: float = 1.0) -> torch.Tensor:
    size = (context.focus.shape[0], context.length, 8)
    return torch.randn(size, generator=torch.Generator().manual_seed(1)) * scale


@pytest.mark.parametrize("scale", [0.0, 0.02, 1.0, 1e4])
def test_scores_lie_between_minus_one_and_one(lensnet, scale):
    context = unroll(focus_tensor(focuses()), geometry_of(TREE)).before_cursor()
    scores = lensnet(context, embeddings_for(context, scale))
    assert scores.shape == context.token.shape
    assert scores.abs().max() <= 1
    assert torch.equal(scores, lensnet(context, embeddings_for(context, scale)))


def test_filling_is_ignored(lensnet):
    geometry = geometry_of(TREE)
    padded = unroll(focus_tensor(focuses()), geometry).before_cursor()
    embeddings = embeddings_for(padded)
    scores = lensnet(padded, embeddings)
    noisy = torch.where(padded.valid[..., None], embeddings, 1e3)
    torch.testing.assert_close(lensnet(padded, noisy)[padded.valid], scores[padded.valid])
    for row, focus in enumerate(focuses()):
        length = len(oracle.unroll(TREE, focus))
        alone = unroll(focus_tensor([focus]), geometry, length).before_cursor()
        assert alone.length == int(padded.valid[row].sum())
        found = lensnet(alone, embeddings[row : row + 1, : alone.length])
        torch.testing.assert_close(found[0], scores[row, : alone.length], atol=1e-5, rtol=1e-4)


def test_rows_do_not_mix(lensnet):
    context = unroll(focus_tensor(focuses()), geometry_of(TREE)).before_cursor()
    embeddings = embeddings_for(context)
    other = embeddings.clone()
    other[1] += 1
    moved = (lensnet(context, other) - lensnet(context, embeddings)).abs().amax(dim=1) > 1e-6
    assert not moved[[0, 2, 3, 4]].any()


def test_recency_rises_from_the_start_to_the_cursor():
    context = unroll(focus_tensor(focuses()), geometry_of(TREE)).before_cursor()
    scores = build("recency")(context, embeddings_for(context))
    for row, focus in enumerate(focuses()):
        entries = [e for e in oracle.unroll(TREE, focus) if e.end <= TREE.cursor]
        wanted = [2 * ((e.start + e.end - 1) / 2) / TREE.cursor - 1 for e in entries]
        assert scores[row, : len(entries)].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", LEARNED)
def test_an_entry_is_judged_by_its_level_span_and_distance(kind):
    """The same embedding everywhere: only what an entry is can tell one from another."""
    lensnet = build(kind)
    context = unroll(focus_tensor([[1, 0, 0, 2, 2, 2] + [0] * 10]), geometry_of(TREE))
    context = context.before_cursor()
    same = torch.ones(1, context.length, 8)
    scores = lensnet(context, same)[0]
    valid = int(context.valid.sum())
    assert scores[:valid].unique().numel() > valid // 2
    # level alone: relabel one entry, everything else as it was
    raw = raw_context(geometry_of(TREE), 1, torch.device("cpu")).before_cursor()
    same = torch.ones(1, raw.length, 8)
    lod = raw.lod.clone()
    lod[0, 9] = 1
    changed = lensnet(replace(raw, lod=lod), same) - lensnet(raw, same)
    assert changed[0, 9].abs() > 1e-5
    # distance alone: the same entries further from the cursor
    far = replace(raw, geometry=geometry_of(TREE._replace(window=100)))
    assert (lensnet(far, same) - lensnet(raw, same)).abs().max() > 1e-5


@pytest.mark.parametrize("kind", LEARNED)
def test_it_looks_both_ways_and_at_the_embeddings(kind):
    lensnet = build(kind)
    raw = raw_context(geometry_of(TREE), 1, torch.device("cpu")).before_cursor()
    embeddings = embeddings_for(raw)
    before = lensnet(raw, embeddings)
    for place in (0, raw.length - 1):
        other = embeddings.clone()
        other[0, place] += 1
        moved = (lensnet(raw, other) - before).abs()[0] > 1e-7
        assert moved.float().mean() > 0.8


@pytest.mark.parametrize("kind", LEARNED)
def test_every_parameter_has_a_gradient(kind):
    lensnet = build(kind)
    context = unroll(focus_tensor(focuses()), geometry_of(TREE)).before_cursor()
    (lensnet(context, embeddings_for(context)) * context.valid).square().sum().backward()
    for name, parameter in lensnet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def test_an_impossible_width_is_refused():
    with pytest.raises(UserError, match="heads = 3"):
        TransformerLensNet(ModelShape(8, geometry_of(TREE)), heads=3)
