import torch

from mcframe.context.counter_rng import gumbel, hash_combine, randint, random_keys, uniform, variant_seeds
from tests.support.oracle import splitmix

WORD = 2**64


def test_the_hash_is_splitmix64():
    states = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    for salt in (0, 1, 7, 2**40, 2**62):
        expected = [splitmix(s % WORD, salt) for s in states]
        assert [int(x) % WORD for x in hash_combine(torch.tensor(states), salt)] == expected
        assert [int(x) % WORD for x in hash_combine(torch.tensor(states), torch.tensor(salt))] == expected
    # the published first outputs of SplitMix64 seeded with 0
    assert [int(hash_combine(torch.tensor(0), i)) % WORD for i in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_seeds_are_reproducible_and_all_different():
    indices = torch.arange(5000)
    seeds = variant_seeds(1234, indices, 3)
    assert torch.equal(seeds, variant_seeds(1234, indices, 3))
    assert seeds.flatten().unique().numel() == seeds.numel()
    assert not torch.isin(variant_seeds(1235, indices, 3), seeds).any()


def test_a_sequence_keeps_its_seeds_in_any_batch():
    every = variant_seeds(7, torch.arange(64), 4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(variant_seeds(7, order, 4), every[order])
    assert torch.equal(variant_seeds(7, torch.tensor([50]), 4), every[50:51])
    assert torch.equal(variant_seeds(7, torch.arange(64), 2), every[:, :2])  # more variants change none of the first


def test_the_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = variant_seeds(3, torch.arange(8), 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(variant_seeds(3, torch.arange(8), 2), first)


def test_bits_and_ranges_are_even():
    seeds = variant_seeds(0, torch.arange(20_000), 2)
    bits = torch.stack([(seeds >> b) & 1 for b in range(64)]).double().mean(dim=(1, 2))
    assert (bits - 0.5).abs().max() < 0.02  # 40,000 coin tosses: a standard deviation is 0.0025
    for bound in (1, 2, 3, 7, 100):
        drawn = randint(seeds, bound)
        assert int(drawn.min()) == 0
        assert int(drawn.max()) == bound - 1
        frequency = drawn.flatten().bincount(minlength=bound).double() / drawn.numel() * bound
        assert (frequency - 1).abs().max() < 0.25
    # The two variants of a sequence are independent.
    signs = torch.where(seeds > 0, 1.0, -1.0)
    assert (signs[:, 0] * signs[:, 1]).mean().abs() < 0.03


def test_priorities_order_at_random():
    drawn = random_keys(variant_seeds(5, torch.arange(12_000), 1)[:, 0], 6)
    assert drawn.shape == (12_000, 6)
    rank = drawn.argsort(dim=1).argsort(dim=1)
    table = torch.stack([(rank == p).double().mean(dim=0) for p in range(6)]) * 6
    assert (table - 1).abs().max() < 0.12  # each item has each rank equally often


def test_noise_is_finite_at_the_extremes_of_a_hash():
    ends = torch.tensor([-(2**63), -1, 0, 2**63 - 1])
    assert ((uniform(ends) > 0) & (uniform(ends) < 1)).all()
    assert gumbel(ends).isfinite().all()
    assert gumbel(ends).dtype == torch.float64
