import io
import math
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.accumulator import Accumulator


def micro_batch(seed, pairs=3, gists=True):
    """StepMetrics as a step makes them: float32 means, some samples undefined, float64 moments."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 20, generator=rng, dtype=torch.float64)
    samples = torch.randn(pairs, generator=rng)
    samples[torch.rand(pairs, generator=rng) < 0.3] = torch.nan
    means = {"train/loss_lod0": torch.tensor([torch.rand((), generator=rng) * 50, 17.0])}
    if gists:
        means["mc/gist_entry_delta/1"] = torch.tensor([torch.randn((), generator=rng), 4.0])
    sums = torch.stack((torch.tensor(20.0, dtype=torch.float64), x.sum(), y.sum(), x @ x, y @ y, x @ y))
    return StepMetrics(
        means=means,
        samples={"mc/adv_delta": samples, "mc/preference_corr": samples.tanh()},
        moments={"mc/pref_span_corr": sums},
        sums={"mc/preference_pair_count": torch.tensor(float(pairs))},
    )


def filled(seeds, **options):
    accumulator = Accumulator()
    for seed in seeds:
        accumulator.add(micro_batch(seed, **options))
    return accumulator


# ---- oracles -------------------------------------------------------------------------------------
floats = st.floats(-100, 100, width=32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(floats, st.integers(0, 1000)), min_size=1, max_size=8))
def test_a_mean_is_the_sum_over_the_count(parts):
    accumulator = Accumulator()
    for total, count in parts:
        accumulator.add(StepMetrics(means={"train/loss": torch.tensor([total, float(count)])}))
    metrics = accumulator.read()
    count = sum(count for _, count in parts)
    if count == 0:
        assert metrics == {}
    else:
        assert metrics["train/loss"] == pytest.approx(math.fsum(total for total, _ in parts) / count, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(floats | st.just(math.nan), min_size=2, max_size=2), min_size=1, max_size=12))
def test_samples_read_back_as_numpy_computes_them(parts):
    accumulator = Accumulator()
    for values in parts:
        accumulator.add(StepMetrics(samples={"mc/adv_delta": torch.tensor(values)}))
    metrics = accumulator.read()
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
    assert metrics == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(floats, floats), min_size=0, max_size=20), st.integers(1, 4))
def test_moments_read_back_as_numpys_correlation(pairs, chunk):
    accumulator = Accumulator()
    for start in range(0, max(len(pairs), 1), chunk):
        x, y = torch.tensor(pairs[start : start + chunk], dtype=torch.float64).reshape(-1, 2).T
        n = torch.tensor(float(len(x)), dtype=torch.float64)
        accumulator.add(
            StepMetrics(moments={"mc/pref_span_corr": torch.stack((n, x.sum(), y.sum(), x @ x, y @ y, x @ y))})
        )
    metrics = accumulator.read()
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    # "Constant" up to rounding: between the two thresholds either answer is right.
    spread = [(column.std() / max(np.sqrt((column**2).mean()), 1e-300)) if len(pairs) else 0.0 for column in table.T]
    if len(pairs) < 2 or min(spread) < 1e-8:
        assert metrics == {}
    elif min(spread) > 1e-4:
        assert metrics["mc/pref_span_corr"] == pytest.approx(np.corrcoef(table.T)[0, 1], abs=1e-6)


def test_a_constant_side_has_no_correlation_in_spite_of_rounding():
    accumulator = Accumulator()
    x, y = torch.full((1000,), 0.1, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    n = torch.tensor(1000.0, dtype=torch.float64)
    accumulator.add(StepMetrics(moments={"mc/pref_span_corr": torch.stack((n, x.sum(), y.sum(), x @ x, y @ y, x @ y))}))
    assert accumulator.read() == {}


def test_the_names_that_are_read_back():
    metrics = filled(range(8)).read()
    assert set(metrics) == {
        "train/loss_lod0",
        "mc/gist_entry_delta/1",
        "mc/preference_pair_count",
        "mc/adv_delta_mean",
        "mc/adv_delta_p95",
        "mc/adv_delta_std",
        "mc/adv_delta_undefined",
        "mc/preference_corr_mean",
        "mc/preference_corr_max",
        "mc/preference_corr_min",
        "mc/preference_corr_undefined",
        "mc/pref_span_corr",
    }
    assert metrics["mc/preference_pair_count"] == 24.0


def test_micro_batches_may_hold_different_names():
    accumulator = Accumulator()
    accumulator.add(micro_batch(0))
    accumulator.add(micro_batch(1, gists=False))
    accumulator.add(micro_batch(2))
    metrics = accumulator.read()
    losses = [micro_batch(seed).means["train/loss_lod0"][0].item() for seed in (0, 2)]
    losses.append(micro_batch(1, gists=False).means["train/loss_lod0"][0].item())
    assert metrics["train/loss_lod0"] == pytest.approx(sum(losses) / 51, rel=1e-12)
    gists = [micro_batch(seed).means["mc/gist_entry_delta/1"][0].item() for seed in (0, 2)]
    assert metrics["mc/gist_entry_delta/1"] == pytest.approx(sum(gists) / 8, rel=1e-12)


def test_reading_begins_a_new_interval():
    accumulator = filled([1, 2])
    accumulator.read()
    assert accumulator.read() == {}
    accumulator.add(micro_batch(3))
    assert accumulator.read() == filled([3]).read()


def test_what_is_added_is_copied():
    accumulator = Accumulator()
    statistics = micro_batch(0)
    accumulator.add(statistics)
    for kind in (statistics.means, statistics.samples, statistics.moments, statistics.sums):
        for tensor in kind.values():
            tensor.fill_(1e9)  # as a CUDA graph overwrites its outputs
    assert accumulator.read() == filled([0]).read()


def test_long_intervals_stay_exact():
    accumulator = Accumulator()
    for _ in range(3000):
        accumulator.add(StepMetrics(means={"train/loss": torch.tensor([0.1, 1.0])}))
    assert accumulator.read()["train/loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


# ---- no host synchronisation ---------------------------------------------------------------------
class NoHostCopy(TorchDispatchMode):
    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "unique", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if any(name.startswith(word) for word in self.FORBIDDEN) or kwargs.get("device") == torch.device("cpu"):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **kwargs)


def test_adding_never_waits_for_the_device():
    accumulator, batches = Accumulator(), [micro_batch(seed) for seed in range(3)]
    with NoHostCopy():
        for statistics in batches:
            accumulator.add(statistics)
    assert accumulator.read() == filled(range(3)).read()
    with NoHostCopy(), pytest.raises(AssertionError, match="waits"):
        batches[0].means["train/loss_lod0"][0].item()


def test_adding_reads_no_value_at_all():
    """Meta tensors have no values, so whatever would read one fails."""
    accumulator = Accumulator("meta")
    for seed in range(3):
        statistics = micro_batch(seed)
        kinds = ("means", "samples", "moments", "sums")
        accumulator.add(StepMetrics(**{k: {n: t.to("meta") for n, t in getattr(statistics, k).items()} for k in kinds}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_adding_never_waits_for_a_gpu():
    batches = [micro_batch(seed) for seed in range(3)]
    kinds = ("means", "samples", "moments", "sums")
    on_gpu = [StepMetrics(**{k: {n: t.cuda() for n, t in getattr(b, k).items()} for k in kinds}) for b in batches]
    accumulator = Accumulator("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for statistics in on_gpu:
            accumulator.add(statistics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert accumulator.read() == pytest.approx(filled(range(3)).read(), rel=1e-12)


# ---- checkpoint and resumption -------------------------------------------------------------------
@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_a_half_filled_interval_survives_a_checkpoint_bit_for_bit(cut):
    first = filled(range(cut))
    file = io.BytesIO()
    torch.save(first.state(), file)
    first.add(micro_batch(99))  # what is added after saving does not reach the checkpoint
    file.seek(0)
    resumed = Accumulator()
    resumed.restore(torch.load(file, weights_only=True))
    for seed in range(cut, 7):
        resumed.add(micro_batch(seed))
    assert resumed.read() == filled(range(7)).read()


# ---- ranks ---------------------------------------------------------------------------------------
def two_ranks(rank, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        accumulator = filled(range(rank, 8, 2))
        results.put(("metrics", accumulator.read()))
        accumulator.add(micro_batch(0, pairs=3 + rank))
        try:
            accumulator.read()
            results.put(("disagreement", "unnoticed"))
        except RuntimeError as error:
            results.put(("disagreement", str(error)))
    except Exception:
        results.put(("failed", traceback.format_exc()))
        raise
    finally:
        dist.destroy_process_group()


def test_two_ranks_read_what_one_rank_reads_of_the_union(tmp_path):
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(two_ranks, (str(tmp_path / "rendezvous"), results), nprocs=2)
    got = {"metrics": [], "disagreement": []}
    while not results.empty():
        kind, value = results.get()
        got[kind].append(value)
    first, second = got["metrics"]
    assert first == second
    assert first == pytest.approx(filled(range(8)).read(), rel=1e-12)
    assert all("ranks disagree" in message for message in got["disagreement"])
    assert len(got["disagreement"]) == 2
