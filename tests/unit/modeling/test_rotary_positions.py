import math

import pytest
import torch

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import build_context, raw_context
from mcframe.hookspecs import BaseShape, HeadShape, Positions, rotate
from mcframe.modeling.gpt import GPT
from mcframe.modeling.rope import GaussianRope, gaussian_rotation


@pytest.mark.parametrize("smoothing", [True, False])
@pytest.mark.parametrize("base", [100.0, 10_000.0])
def test_rotation_is_the_scalar_formula(base, smoothing):
    mu = torch.tensor([[0.0, 1.0, 15.5, 511.5, 2047.0], [3.0, 7.25, 100.0, 1000.0, 1999.5]])
    sigma = torch.tensor([[0.0, 0.0, 9.233, 295.6, 0.0], [0.0, 0.6455, 1.1, 30.0, 9.233]])
    cosine, sine = gaussian_rotation(mu, sigma, 16, base=base, smoothing=smoothing)
    assert cosine.shape == sine.shape == (2, 1, 5, 8)
    assert cosine.dtype == sine.dtype == torch.float32
    for row in range(2):
        for column in range(5):
            m, s = mu[row, column].item(), sigma[row, column].item()
            for i in range(8):
                f = base ** (-2 * i / 16)
                damping = math.exp(-((s * f) ** 2) / 2) if smoothing else 1.0
                assert cosine[row, 0, column, i].item() == pytest.approx(math.cos(f * m) * damping, abs=2e-4)
                assert sine[row, 0, column, i].item() == pytest.approx(math.sin(f * m) * damping, abs=2e-4)


def test_rotation_is_the_expectation_over_a_gaussian():
    draws = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.5 + 11
    cosine, sine = gaussian_rotation(torch.tensor([[11.0]]), torch.tensor([[2.5]]), 4, base=25.0)
    for i, f in enumerate((1.0, 25.0**-0.5)):
        assert cosine[0, 0, 0, i].item() == pytest.approx((f * draws).cos().mean().item(), abs=5e-3)
        assert sine[0, 0, 0, i].item() == pytest.approx((f * draws).sin().mean().item(), abs=5e-3)


def test_without_spread_it_is_plain_rope_and_depends_on_distance_alone():
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)

    def at(x: torch.Tensor, position: float) -> torch.Tensor:
        return rotate(x, *gaussian_rotation(torch.tensor([[position]]), torch.zeros(1, 1), 8))

    assert at(query, 37.0).norm() == pytest.approx(query.norm().item(), rel=1e-5)
    assert torch.equal(at(query, 0.0), query)
    near = (at(query, 9.0) * at(key, 4.0)).sum()
    far = (at(query, 905.0) * at(key, 900.0)).sum()
    assert near.item() == pytest.approx(far.item(), abs=1e-3)


def test_a_wide_span_is_damped_at_high_frequencies():
    x = torch.ones(1, 1, 1, 8)
    mu = torch.tensor([[20.0]])
    narrow, wide = (
        rotate(x, *gaussian_rotation(mu, torch.tensor([[s]]), 8)).view(2, 4).norm(dim=0) for s in (0.0, 9.2)
    )
    assert (wide <= narrow + 1e-6).all()
    assert wide[0] < 1e-6
    assert wide[-1] > 0.99 * narrow[-1]


def test_angles_are_float32_even_for_a_bfloat16_model():
    cosine, _ = gaussian_rotation(torch.tensor([[2047.0, 2048.0]]).bfloat16().float(), torch.zeros(1, 2), 4)
    assert cosine.dtype == torch.float32
    cosine, sine = gaussian_rotation(torch.tensor([[2047.0, 2046.0]]), torch.zeros(1, 2), 4)
    assert rotate(torch.ones(1, 1, 2, 4).bfloat16(), cosine, sine).dtype == torch.bfloat16
    assert (cosine[0, 0, 0] - cosine[0, 0, 1]).abs().max() > 0.1


TREE = ContextTree(16, 4, tail=4)
CONTEXT = build_context(torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]), TREE, 13)


@pytest.mark.parametrize(("placement", "mu"), [("centre", 1.5), ("start", 0.0), ("end", 3.0)])
def test_gaussian_rope_rotates_by_mean_and_spread_of_a_gist(placement, mu):
    cosine, sine = GaussianRope(HeadShape(2, 6, TREE), base=50.0, placement=placement)(CONTEXT)
    assert cosine.shape == sine.shape == (2, 1, 13, 3)
    expected = gaussian_rotation(torch.tensor([[mu]]), torch.tensor([[(15 / 12) ** 0.5]]), 6, base=50.0)
    torch.testing.assert_close(cosine[:1, :, :1], expected[0])
    torch.testing.assert_close(sine[:1, :, :1], expected[1])
    plain, _ = GaussianRope(HeadShape(2, 6, TREE), base=50.0, placement=placement, smoothing=False)(CONTEXT)
    assert (plain[0, 0, 0].abs() >= cosine[0, 0, 0].abs()).all()
    assert torch.equal(plain[0, 0, 1:], cosine[0, 0, 1:])  # tokens have no width


class LearnedByHead(Positions):
    """Frequencies of each head's own, learned; entries are counted instead of tokens."""

    def __init__(self, shape):
        super().__init__()
        self.frequency_embed = torch.nn.Parameter(torch.linspace(0.1, 2.0, shape.heads * shape.width // 2))
        self.size = (shape.heads, 1, shape.width // 2)

    def forward(self, context):
        angle = torch.arange(context.length).float()[:, None] * self.frequency_embed.view(self.size)
        rows = angle.expand(context.token.shape[0], *self.size[:1], -1, -1)
        return rows.cos(), rows.sin()


def test_third_party_positions_learn():
    torch.manual_seed(0)
    gpt = GPT(BaseShape(TREE, 11, LearnedByHead), depth=1, width=12, heads=2)
    torch.nn.init.normal_(gpt.blocks[0].attention.out.weight)
    embeddings = torch.randn(2, 13, 12)
    gpt.hidden(embeddings, CONTEXT).sin().sum().backward()
    frequency = gpt.positions.frequency_embed
    assert frequency.grad.count_nonzero() == frequency.numel()


def test_order_enters_the_base_model_by_positions_alone():
    """One layer without rotation sees the entries before a position as a set."""
    torch.manual_seed(0)
    gpt = GPT(BaseShape(TREE, 11, LearnedByHead), depth=1, width=12, heads=2)
    torch.nn.init.normal_(gpt.blocks[0].attention.out.weight)
    embeddings, raw = torch.randn(2, 16, 12), raw_context(TREE, 1, torch.device("cpu"))
    mixed = embeddings[:, [3, 1, 0, 2, *range(4, 16)]]
    assert not torch.allclose(gpt.hidden(embeddings, raw)[:, 4:], gpt.hidden(mixed, raw)[:, 4:], atol=1e-3)
    with torch.no_grad():
        gpt.positions.frequency_embed.zero_()
    torch.testing.assert_close(gpt.hidden(embeddings, raw)[:, 4:], gpt.hidden(mixed, raw)[:, 4:])
