"""Peak memory of NLL and distillation, forward and backward: `python benchmarks/loss_memory.py`.

Hidden states and the output weight go in, gradients of both come out. Printed: the most memory allocated on top of
inputs and parameters, as a fraction of all logits in float32, and processor seconds. Options: --rows N, --vocabulary N,
--width N, --device NAME.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import BaseShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.rope import GaussianRope


def head(vocabulary: int, width: int) -> GPT:
    """Return a base model of one layer."""
    tree = ContextTree(window=32, block_size=8, tail=8)
    return GPT(BaseShape(tree, vocabulary, GaussianRope), depth=1, width=width, heads=1)


def losses(gpt: GPT, rows: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return the steps that are measured: each computes gradients of random hidden states [1, rows, D] and weights."""
    gpt.to(device)
    hidden, teacher = (torch.randn(1, rows, gpt.width, device=device) for _ in range(2))
    targets = torch.randint(gpt.vocab_size, (1, rows), device=device)
    hidden.requires_grad_()

    def step(loss: Callable[[], Tensor]) -> None:
        gpt.zero_grad()
        hidden.grad = None
        loss().backward()

    return {
        "nll": partial(step, lambda: gpt.nll(hidden, targets).mean()),
        "nll and kl": partial(step, lambda: torch.stack(gpt.nll_and_kl(hidden, targets, teacher)).sum() / rows),
    }


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Return the most memory in bytes that is allocated during `step`, beyond what is allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(file))
        events = [each for each in json.loads(file.read_text())["traceEvents"] if each["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: float(each["ts"])):
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak


def main() -> None:
    """Print a line a loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--vocabulary", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    gpt, full = head(options.vocabulary, options.width), 4 * options.rows * options.vocabulary
    for name, step in losses(gpt, options.rows, options.device).items():
        start = time.process_time()
        peak = peak_bytes(step, options.device)
        seconds = time.process_time() - start
        print(f"{name}: {peak / 2**20:,.0f} MiB, {peak / full:.3f} of all logits, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
