import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.metrics.mfu import PEAK, device_peak, gpt_flops_per_token, mfu

# run10 (docs/concepts.md): depth 12, width 768, vocabulary 65,536, T = 2048, 185.6 M parameters
RUN10 = {"non_embedding_parameters": 185_600_000 - 65_536 * 768, "depth": 12, "width": 768, "context_length": 2048}


def test_run10_costs_1_04_gflop_a_token():
    assert gpt_flops_per_token(**RUN10) == pytest.approx(1.04e9, rel=5e-3)


def test_the_reviews_speed_is_less_than_half_a_percent():
    """3.9k tokens/s on an H100 was read as an MFU of 0.41."""
    fraction = mfu(3_900 * gpt_flops_per_token(**RUN10), 989e12, 1)
    assert fraction == pytest.approx(0.0041, rel=2e-2)


@given(st.integers(1, 10**9), st.integers(1, 100), st.integers(1, 10**4), st.integers(1, 10**5))
def test_the_formula(parameters, depth, width, context):
    expected = 6 * parameters + 12 * depth * width * context
    assert gpt_flops_per_token(parameters, depth, width, context) == pytest.approx(expected)


def test_peaks_are_those_of_dense_half_precision():
    assert device_peak("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert device_peak("NVIDIA A100-SXM4-80GB", torch.float16) == 312e12
    assert all(30e12 < peak < 3e15 for peak in PEAK.values())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3", torch.float32),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),
        ("Some GPU of next year", torch.bfloat16),
        ("cpu", torch.bfloat16),
        ("", torch.bfloat16),
    ],
)
def test_an_unknown_peak_is_none(name, dtype):
    assert device_peak(name, dtype) is None


@given(st.floats(1e-6, 1.0), st.sampled_from(sorted(PEAK.values())), st.integers(1, 4096))
def test_mfu_is_a_fraction_of_all_devices(fraction, peak, world):
    assert mfu(fraction * peak * world * (1 - 1e-12), peak, world) == pytest.approx(fraction)


@pytest.mark.parametrize("flops", [0.0, -1e12, 990e12, float("nan"), float("inf")])
def test_mfu_outside_its_range_is_an_error(flops):
    with pytest.raises(ValueError, match="expected a fraction"):
        mfu(flops, 989e12, 1)
