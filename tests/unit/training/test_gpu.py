"""Settings of processes on a GPU."""

import os

import pytest
import torch

from mcframe.training.gpu import prepare_allocator, set_float32_products


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_of_the_user_is_kept(monkeypatch, name):
    for each in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:64")
    prepare_allocator()
    assert {each: value for each, value in os.environ.items() if each.endswith("ALLOC_CONF")} == {
        name: "max_split_size_mb:64"
    }
    monkeypatch.delenv(name)
    prepare_allocator()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")


def test_float32_products_of_a_gpu_alone_are_rounded_on_request(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    set_float32_products(torch.device("cpu"), True)
    set_float32_products(torch.device("cuda"), True)
    set_float32_products(torch.device("cuda"), False)
    assert set_to == ["high", "highest"]
