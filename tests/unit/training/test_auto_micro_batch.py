"""`run.micro_batch = 'auto'`: sizes that are tried, and memory that runs out."""

import multiprocessing
import resource
from types import SimpleNamespace

import psutil
import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.training.auto_micro_batch import candidates, largest_that_fits, with_micro_batch
from mcframe.training.build import build_components

CPU = torch.device("cpu")
MIB = 2**20
SETTINGS = ["run.micro_batch = 'auto'", "run.batch_tokens = 8192", "run.total_tokens = 8192"]


@pytest.mark.parametrize(
    ("sequences", "every", "sizes"),
    [(56, 1, [1, 2, 4, 8, 14, 28, 56]), (64, 4, [4, 8, 16, 32, 64]), (1, 1, [1]), (6, 4, [6]), (10, 5, [5, 10])],
)
def test_sizes_are_divisors_of_the_sequences_of_a_rank(sequences, every, sizes):
    run_config = SimpleNamespace(sequences=2 * sequences)
    step = SimpleNamespace(baseline_every=every, variants_every=1)
    assert candidates(run_config, step, 2) == sizes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9")]
)
def test_the_last_size_before_memory_runs_out_is_kept(error):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 4:
            raise error

    assert largest_that_fits([1, 2, 4, 8, 16], attempt) == 4
    assert tried == [1, 2, 4, 8]
    assert largest_that_fits([8, 16], attempt) == 0


def test_another_error_is_raised():
    def attempt(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_that_fits([1], attempt)


@pytest.fixture(scope="module")
def components(smoke):
    return build_components(load_run_config([smoke], SETTINGS).run_config)


def test_a_cpu_without_a_limit_of_memory_is_refused(components):
    with pytest.raises(UserError, match=r"expected a GPU, or a limit of memory, got cpu"):
        with_micro_batch(components, CPU, 1)


def search(components, mib, sender):
    """Look for the micro-batch with so much more memory than this process has, less what stays free."""
    limit = int((psutil.Process().memory_info().vms + mib * MIB) / 0.95)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _held = [] if mib else everything()
    try:
        found = with_micro_batch(components, CPU, 1).run_config
        sender.send((found.micro_batch, found.batch_tokens))
    except UserError as error:
        sender.send(error.message)


def everything():
    """Take all memory that is left, also what the process has freed before."""
    held = []
    for kib in (65536, 4096, 256):
        while True:
            try:
                held.append(bytearray(kib * 1024))
            except MemoryError:
                break
    return held


@pytest.mark.parametrize(("mib", "least", "most"), [(160, 2, 32), (1500, 64, 64)])
def test_a_step_that_exceeds_the_memory_of_a_process_bounds_the_size(components, mib, least, most):
    found, tokens = forked(search, components, mib)
    assert least <= found <= most
    assert tokens == 8192


def test_memory_that_holds_no_sequence_is_one_message(components):
    assert "1 sequence(s) of 128 tokens do not fit" in forked(search, components, 0)


def forked(function, *arguments):
    """Run a function in a fork of this process, and return what it sends."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, sender))
    process.start()
    assert receiver.poll(60)
    found = receiver.recv()
    process.join()
    return found
