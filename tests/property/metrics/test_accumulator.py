"""The accumulator against numpy and plain sums; without host synchronisation, over checkpoints and over ranks."""

import io
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mcframe.context.step_histograms import MAX_POINTS, NO_POINT, top_points
from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.accumulator import Accumulator, Reading
from tests.support.layouts import in_ranks

FIELDS = ("means", "roots", "sums", "samples", "moments", "counts", "points")


def micro_batch(seed, pairs=3, gists=True):
    """Make StepMetrics like those of a step: float32 means, undefined samples, float64 moments and points."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 20, generator=rng, dtype=torch.float64)
    samples = torch.randn(pairs, generator=rng)
    samples[torch.rand(pairs, generator=rng) < 0.3] = torch.nan
    means = {"train/loss_lod0": torch.tensor([torch.rand((), generator=rng) * 50, 17.0])}
    if gists:
        means["mc/gist_entry_delta/1"] = torch.tensor([torch.randn((), generator=rng), 4.0])
    sums = torch.stack((torch.tensor(20.0, dtype=torch.float64), x.sum(), y.sum(), x @ x, y @ y, x @ y))
    points = torch.rand(80, 4, generator=rng, dtype=torch.float64)
    points[torch.rand(80, generator=rng) < 0.5, 0] = NO_POINT
    return StepMetrics(
        means=means,
        roots={"train/update_ratio/gpt": torch.rand(2, generator=rng, dtype=torch.float64)},
        samples={"mc/adv_delta": samples, "mc/preference_corr": samples.tanh()},
        moments={"mc/pref_span_corr": sums},
        sums={"mc/preference_pair_count": torch.tensor(float(pairs))},
        counts={
            "mc/lens_score": torch.randint(0, 9, (2, 40), generator=rng),
            "mc/variant_delta": torch.randint(0, 3, (1, 61), generator=rng),
        },
        points={"mc/spans": top_points(points)},
    )


def filled(seeds, **options):
    accumulator = Accumulator()
    for seed in seeds:
        accumulator.add(micro_batch(seed, **options))
    return accumulator


def read_one(**metrics):
    accumulator = Accumulator()
    accumulator.add(StepMetrics(**metrics))
    return accumulator.read()


def assert_same(a: Reading, b: Reading, rel=0.0):
    assert a.metrics == (pytest.approx(b.metrics, rel=rel) if rel else b.metrics)
    for x, y in ((a.counts, b.counts), (a.points, b.points)):
        assert x.keys() == y.keys()
        assert all(np.array_equal(x[name], y[name]) for name in x)


# ---- oracles -------------------------------------------------------------------------------------
floats = st.floats(-100, 100, width=32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 100, width=32), st.integers(0, 1000)), min_size=1, max_size=8))
def test_means_and_roots(parts):
    accumulator = Accumulator()
    for total, count in parts:
        pair = torch.tensor([total, float(count)])
        accumulator.add(StepMetrics(means={"train/loss": pair}, roots={"train/update_ratio/gpt": pair}))
    metrics = accumulator.read().metrics
    count = sum(count for _, count in parts)
    if count == 0:
        assert metrics == {}
    else:
        mean = math.fsum(total for total, _ in parts) / count
        assert metrics["train/loss"] == pytest.approx(mean, abs=1e-9)
        assert metrics["train/update_ratio/gpt"] == pytest.approx(math.sqrt(mean), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(floats | st.just(math.nan), min_size=2, max_size=2), min_size=1, max_size=12))
def test_samples_equal_numpy(parts):
    accumulator = Accumulator()
    for values in parts:
        accumulator.add(StepMetrics(samples={"mc/adv_delta": torch.tensor(values)}))
    values = np.array(parts, dtype=np.float32).astype(np.float64).ravel()
    defined = values[~np.isnan(values)]
    expected = {}
    if defined.size:
        expected = {
            "mc/adv_delta_mean": defined.mean(),
            "mc/adv_delta_p95": np.quantile(defined, 0.95),
            "mc/adv_delta_std": defined.std(),
        }
    if defined.size < values.size:
        expected["mc/adv_delta_undefined"] = values.size - defined.size
    assert accumulator.read().metrics == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(floats, floats), min_size=0, max_size=20), st.integers(1, 4))
def test_moments_equal_numpy(pairs, chunk):
    accumulator = Accumulator()
    for start in range(0, max(len(pairs), 1), chunk):
        x, y = torch.tensor(pairs[start : start + chunk], dtype=torch.float64).reshape(-1, 2).T
        n = torch.tensor(float(len(x)), dtype=torch.float64)
        accumulator.add(
            StepMetrics(moments={"mc/pref_span_corr": torch.stack((n, x.sum(), y.sum(), x @ x, y @ y, x @ y))})
        )
    metrics = accumulator.read().metrics
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    # "Constant" up to rounding: between the two thresholds either answer is correct.
    spread = [(column.std() / max(np.sqrt((column**2).mean()), 1e-300)) if len(pairs) else 0.0 for column in table.T]
    if len(pairs) < 2 or min(spread) < 1e-8:
        assert metrics == {}
    elif min(spread) > 1e-4:
        assert metrics["mc/pref_span_corr"] == pytest.approx(np.corrcoef(table.T)[0, 1], abs=1e-6)


def test_constant_values_have_no_correlation_despite_rounding():
    x, y = torch.full((1000,), 0.1, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    n = torch.tensor(1000.0, dtype=torch.float64)
    moments = {"mc/pref_span_corr": torch.stack((n, x.sum(), y.sum(), x @ x, y @ y, x @ y))}
    assert read_one(moments=moments).metrics == {}


def test_counts_are_sums_and_points_those_of_highest_priority():
    reading = filled(range(5)).read()
    parts = [micro_batch(seed) for seed in range(5)]
    for name in ("mc/lens_score", "mc/variant_delta"):
        assert np.array_equal(reading.counts[name], sum(part.counts[name].numpy() for part in parts))
    every = sorted((row for part in parts for row in part.points["mc/spans"].tolist() if row[0] >= 0), reverse=True)
    assert len(every) > MAX_POINTS
    assert reading.points["mc/spans"].tolist() == [row[1:] for row in every[:MAX_POINTS]]


def test_rows_without_a_point_are_dropped():
    points = torch.tensor([[NO_POINT, 9.0, 9.0, 9.0], [5.0, 0.1, 0.2, 1.0], [0.0, 0.3, 0.4, 2.0]]).double()
    found = read_one(points={"mc/spans": points}).points["mc/spans"]
    assert found == pytest.approx(np.array([[0.1, 0.2, 1.0], [0.3, 0.4, 2.0]]))


def test_micro_batches_may_hold_different_names():
    accumulator = Accumulator()
    accumulator.add(micro_batch(0))
    accumulator.add(micro_batch(1, gists=False))
    accumulator.add(micro_batch(2))
    metrics = accumulator.read().metrics
    losses = [micro_batch(seed).means["train/loss_lod0"][0].item() for seed in (0, 2)]
    losses.append(micro_batch(1, gists=False).means["train/loss_lod0"][0].item())
    assert metrics["train/loss_lod0"] == pytest.approx(sum(losses) / 51, rel=1e-12)
    gists = [micro_batch(seed).means["mc/gist_entry_delta/1"][0].item() for seed in (0, 2)]
    assert metrics["mc/gist_entry_delta/1"] == pytest.approx(sum(gists) / 8, rel=1e-12)


def test_reading_starts_a_new_interval():
    accumulator = filled([1, 2])
    accumulator.read()
    assert_same(accumulator.read(), Reading())
    accumulator.add(micro_batch(3))
    accumulator.add(StepMetrics())
    assert_same(accumulator.read(), filled([3]).read())


def test_add_copies_tensors():
    accumulator, metrics = Accumulator(), micro_batch(0)
    accumulator.add(metrics)
    for name in FIELDS:
        for tensor in getattr(metrics, name).values():
            tensor.fill_(99)  # as a CUDA graph overwrites its outputs
    assert_same(accumulator.read(), filled([0]).read())


def test_long_intervals_stay_exact():
    accumulator = Accumulator()
    for _ in range(3000):
        accumulator.add(StepMetrics(means={"train/loss": torch.tensor([0.1, 1.0])}))
    assert accumulator.read().metrics["train/loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_counts_and_points_do_not_grow_with_time():
    held = {tuple(key): value.shape for key, value in filled(range(40)).state()["held"]}
    assert held["points", "mc/spans"] == (MAX_POINTS, 4)
    assert held["counts", "mc/lens_score"] == (1, 2, 40)


# ---- no host synchronisation ---------------------------------------------------------------------
class NoHostCopy(TorchDispatchMode):
    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "unique", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if any(name.startswith(word) for word in self.FORBIDDEN) or kwargs.get("device") == torch.device("cpu"):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **kwargs)


def moved(metrics, device):
    """Return StepMetrics on another device."""
    return StepMetrics(
        **{field: {name: t.to(device) for name, t in getattr(metrics, field).items()} for field in FIELDS}
    )


def test_add_does_not_synchronise():
    accumulator, batches = Accumulator(), [micro_batch(seed) for seed in range(3)]
    with NoHostCopy():
        for metrics in batches:
            accumulator.add(metrics)
    assert_same(accumulator.read(), filled(range(3)).read())
    with NoHostCopy(), pytest.raises(AssertionError, match="waits"):
        batches[0].means["train/loss_lod0"][0].item()


# ---- checkpoints ---------------------------------------------------------------------------------
@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_unread_interval_survives_a_checkpoint_bit_for_bit(cut):
    first, file = filled(range(cut)), io.BytesIO()
    torch.save(first.state(), file)
    first.add(micro_batch(99))  # not part of the checkpoint
    file.seek(0)
    resumed = Accumulator()
    resumed.restore(torch.load(file, weights_only=True))
    for seed in range(cut, 7):
        resumed.add(micro_batch(seed))
    assert_same(resumed.read(), filled(range(7)).read())


def test_resuming_with_other_blocks_discards_the_counts_of_the_checkpoint():
    accumulator = Accumulator()
    accumulator.restore(filled([1]).state())
    coarse = StepMetrics(counts={"mc/lens_score": torch.ones(3, 20, dtype=torch.long)})
    accumulator.add(coarse)
    accumulator.add(coarse)
    assert np.array_equal(accumulator.read().counts["mc/lens_score"], np.full((3, 20), 2))
    accumulator.restore(Accumulator.merge([filled([1]).state(), filled([2]).state()]))
    accumulator.add(coarse)
    assert np.array_equal(accumulator.read().counts["mc/lens_score"], np.ones((3, 20)))


# ---- ranks ---------------------------------------------------------------------------------------
def read_on_a_rank(alone):
    """Compare what this rank reads with what one rank alone reads of all micro-batches."""
    rank, readings = dist.get_rank(), [None, None]
    accumulator = filled(range(rank, 8, 2))
    dist.all_gather_object(readings, accumulator.read())
    assert_same(*readings)
    assert_same(readings[rank], alone, rel=1e-12)
    resumed, again = Accumulator(), Accumulator()  # of three ranks, and once more before it is read
    resumed.restore(Accumulator.merge([filled(seeds).state() for seeds in ([0, 1, 2], [3, 4], [5])]))
    resumed.add(micro_batch(6 + rank))
    again.restore(resumed.state())
    assert_same(again.read(), alone, rel=1e-12)
    assert again.read().metrics == {}
    accumulator.add(micro_batch(0, pairs=3 + rank))
    with pytest.raises(RuntimeError, match="ranks disagree"):
        accumulator.read()


def test_two_ranks_read_what_one_rank_reads_of_the_union():
    in_ranks(read_on_a_rank, 2, filled(range(8)).read())
