import io
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mcframe.context import step_histograms as tallies
from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.tally import Reading, Tally
from tests.property.metrics.test_accumulator import NoHostCopy


def micro_batch(seed, spans=80):
    rng = torch.Generator().manual_seed(seed)
    points = torch.rand(spans, 4, generator=rng, dtype=torch.float64)
    points[torch.rand(spans, generator=rng) < 0.5, 0] = tallies.ABSENT
    return StepMetrics(
        counts={
            "mc/lens_score": torch.randint(0, 9, (2, 40), generator=rng),
            "mc/variant_delta": torch.randint(0, 3, (1, 61), generator=rng),
        },
        points={"mc/spans": tallies.foremost(points)},
    )


def filled(seeds):
    tally = Tally()
    for seed in seeds:
        tally.add(micro_batch(seed))
    return tally


def same(a: Reading, b: Reading) -> bool:
    pairs = [(a.counts, b.counts), (a.points, b.points)]
    return all(x.keys() == y.keys() and all(np.array_equal(x[n], y[n]) for n in x) for x, y in pairs)


def test_counts_are_sums_and_points_the_foremost_of_all():
    reading = filled(range(5)).read()
    parts = [micro_batch(seed) for seed in range(5)]
    for name in ("mc/lens_score", "mc/variant_delta"):
        assert np.array_equal(reading.counts[name], sum(part.counts[name].numpy() for part in parts))
    every = sorted((row for part in parts for row in part.points["mc/spans"].tolist() if row[0] >= 0), reverse=True)
    assert len(every) > tallies.SPANS
    assert reading.points["mc/spans"].tolist() == [row[1:] for row in every[: tallies.SPANS]]


def test_reading_begins_a_new_interval_and_a_twin_has_nothing():
    tally = filled([1])
    tally.read()
    assert same(tally.read(), Reading({}, {}))
    tally.add(micro_batch(2))
    assert same(tally.read(), filled([2]).read())
    tally.add(StepMetrics())
    assert same(tally.read(), Reading({}, {}))


def test_what_is_added_is_copied():
    tally, statistics = Tally(), micro_batch(0)
    tally.add(statistics)
    for tensor in (*statistics.counts.values(), *statistics.points.values()):
        tensor.fill_(99)
    assert same(tally.read(), filled([0]).read())


def test_it_does_not_grow_with_time():
    tally = filled(range(40))
    sizes = {kind: {name: tensor.shape for name, tensor in pool.items()} for kind, pool in tally.state().items()}
    assert sizes["points"]["mc/spans"] == (tallies.SPANS, 4)
    assert sizes["counts"]["mc/lens_score"] == (2, 40)


def test_adding_never_waits_for_the_device():
    tally, batches = Tally(), [micro_batch(seed) for seed in range(3)]
    with NoHostCopy():
        for statistics in batches:
            tally.add(statistics)
    assert same(tally.read(), filled(range(3)).read())


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_half_filled_interval_survives_a_checkpoint(cut):
    first, file = filled(range(cut)), io.BytesIO()
    torch.save(first.state(), file)
    first.add(micro_batch(99))
    file.seek(0)
    resumed = Tally()
    resumed.restore(torch.load(file, weights_only=True))
    for seed in range(cut, 6):
        resumed.add(micro_batch(seed))
    assert same(resumed.read(), filled(range(6)).read())


def two_ranks(rank, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        reading = filled(range(rank, 8, 2)).read()
        results.put((reading.counts, reading.points))
    except Exception:
        results.put(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def test_two_ranks_read_what_one_rank_reads_of_the_union(tmp_path):
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(two_ranks, (str(tmp_path / "rendezvous"), results), nprocs=2)
    alone, found = filled(range(8)).read(), 0
    while not results.empty():
        assert same(Reading(*results.get()), alone)
        found += 1
    assert found == 2


def test_what_is_no_span_is_not_read():
    tally, points = Tally(), torch.tensor([[tallies.ABSENT, 9.0, 9.0, 9.0], [5.0, 0.1, 0.2, 1.0], [0.0, 0.3, 0.4, 2.0]])
    tally.add(StepMetrics(points={"mc/spans": points.double()}))
    assert tally.read().points["mc/spans"] == pytest.approx(np.array([[0.1, 0.2, 1.0], [0.3, 0.4, 2.0]]))


def test_a_run_goes_on_from_an_older_checkpoint_or_with_other_blocks():
    tally = filled([1])
    tally.restore(None)
    assert same(tally.read(), Reading({}, {}))
    tally.restore(filled([1]).state())
    coarse = StepMetrics(counts={"mc/lens_score": torch.ones(3, 20, dtype=torch.long)})
    tally.add(coarse)
    tally.add(coarse)
    assert np.array_equal(tally.read().counts["mc/lens_score"], np.full((3, 20), 2))
