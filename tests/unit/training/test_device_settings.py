"""Settings of memory and arithmetic of processes that train."""

import os
import subprocess
import sys

import pytest
import torch

from mcframe.training.device_settings import _has_glibc, prepare_allocator, set_float32_products


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


FREED = """
import sys, psutil, torch
from mcframe.training.device_settings import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
before = psutil.Process().memory_info().rss
tensors = [torch.ones(2**20) for _ in range(32)]
del tensors
print(kept, (psutil.Process().memory_info().rss - before) // 2**20)
"""


def memory_after(mode, **variables):
    """Return whether memory is kept, and MiB that the process still has after it freed 128."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    kept, left = subprocess.check_output([sys.executable, "-c", FREED, mode], env=clean | variables, text=True).split()
    return kept == "True", int(left)


@pytest.mark.skipif(not _has_glibc(), reason="only glibc's allocator is set up")
def test_memory_that_a_step_frees_is_kept_unless_the_user_has_set_up_the_allocator():
    assert memory_after("default")[1] < 20
    kept, left = memory_after("kept")
    assert kept
    assert left > 100
    kept, left = memory_after("kept", MALLOC_TRIM_THRESHOLD_="1000000")
    assert not kept
    assert left < 20


def test_float32_products_of_a_gpu_alone_are_rounded_on_request(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    set_float32_products(torch.device("cpu"), True)
    set_float32_products(torch.device("cuda"), True)
    set_float32_products(torch.device("cuda"), False)
    assert set_to == ["high", "highest"]
