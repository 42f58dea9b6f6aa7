"""What `hookspecs.GistNet` asks, of every GistNet that comes with the framework."""

import pytest
import torch

from mcframe.context.geometry import Geometry
from mcframe.errors import UserError
from mcframe.hookspecs import GistNet, ModelShape
from mcframe_plugins.gistnet import MeanGistNet, TransformerGistNet


def transformer(pooling: str, head: str, residual: bool):
    return lambda shape: TransformerGistNet(shape, layers=1, heads=3, pooling=pooling, head=head, residual=residual)


KINDS = {"mean": MeanGistNet} | {
    f"transformer-{pooling}-{head}-{'residual' if residual else 'bare'}": transformer(pooling, head, residual)
    for pooling in ("mean", "query", "cls")
    for head in ("linear", "mlp")
    for residual in (True, False)
}
SHAPES = [(2, 1), (5, 1), (5, 3), (7, 4)]  # K and G, odd sizes among them


def build(kind: str, block_size: int, slots: int, width: int = 9) -> tuple[GistNet, Geometry]:
    torch.manual_seed(0)
    geometry = Geometry(block_size**3, block_size, levels=3, slots=slots, tail=0)
    return KINDS[kind](ModelShape(width, geometry)), geometry


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block_size", "slots"), SHAPES)
def test_shape_isolation_determinism_and_gradient(kind, block_size, slots):
    gistnet, geometry = build(kind, block_size, slots)
    gistnet.eval()
    assert gistnet.context_blocks == 0
    for lod in (1, 2, 3):
        count = block_size * geometry.slots_at(lod - 1)
        children = torch.randn(2, 3, count, 9, requires_grad=True)
        gists = gistnet(children, lod)
        assert gists.shape == (2, 3, slots, 9)
        assert gists.dtype == children.dtype
        assert torch.equal(gists, gistnet(children, lod))

        other = children.detach().clone()
        other[0, 1] += 1.0 + torch.randn(count, 9)
        moved = (gistnet(other, lod) - gists).abs().amax(dim=(2, 3)) > 1e-6
        assert moved.tolist() == [[False, True, False], [False] * 3]  # its own block and no other
        alone = gistnet(children[1:, 2:], lod)
        torch.testing.assert_close(alone, gists[1:, 2:], atol=1e-5, rtol=1e-4)

        (gists[0, 1] * torch.randn(slots, 9)).sum().backward()
        reached = children.grad.abs().amax(dim=-1) > 0
        assert reached[0, 1].all()  # every child counts
        reached[0, 1] = False
        assert not reached.any()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_bfloat16(kind):
    gistnet, _ = build(kind, 5, 2)
    gistnet = gistnet.bfloat16()
    assert gistnet(torch.randn(1, 2, 5, 9).bfloat16(), 1).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mean"])
def test_the_transformer_knows_order_and_level(kind):
    gistnet, _ = build(kind, 5, 1)
    children = torch.randn(1, 1, 5, 9)
    gist = gistnet(children, 1)
    assert (gistnet(children.flip(2), 1) - gist).abs().max() > 1e-6
    assert (gistnet(children, 2) - gist).abs().max() > 1e-6


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mean"])
@pytest.mark.parametrize("slots", [2, 3])
def test_slots_of_a_gist_differ(kind, slots):
    gistnet, _ = build(kind, 5, slots)
    gist = gistnet(torch.randn(1, 1, 5, 9), 1)[0, 0]
    for one in range(slots):
        for other in range(one):
            assert (gist[one] - gist[other]).abs().max() > 1e-4


@pytest.mark.parametrize(("block_size", "slots"), SHAPES)
def test_mean_is_the_mean_of_each_stretch(block_size, slots):
    gistnet, _ = build("mean", block_size, slots)
    children = torch.randn(1, 1, block_size, 9)
    wanted = []
    for slot in range(slots):
        members = [children[0, 0, c] for c in range(block_size) if c * slots // block_size == slot]
        wanted.append(sum(members) / len(members))
    torch.testing.assert_close(gistnet(children, 1)[0, 0], torch.stack(wanted))


def test_means_of_means_are_means():
    gistnet, _ = build("mean", 5, 1)
    tokens = torch.randn(1, 25, 9)
    below = gistnet(tokens.view(1, 5, 5, 9), 1)
    torch.testing.assert_close(gistnet(below.view(1, 1, 5, 9), 2)[0, 0, 0], tokens[0].mean(dim=0))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="heads = 4"):
        TransformerGistNet(ModelShape(9, Geometry(25, 5, tail=0)), heads=4)
