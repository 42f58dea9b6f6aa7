"""Plans for many GPUs, and ranks of this machine measured.

    python benchmarks/scaling.py plan [--gin gin/run10.gin] [--set BINDING]     # the table of docs/scaling.md
    python benchmarks/scaling.py measure [--gin gin/smoke.gin] [--rounds 5]     # one rank and two, ZeRO 0 to 3

The plan counts FLOPs and bytes; its speeds are assumptions, stated above its table. It assumes that communication waits
for the computation of a step, so that its tokens/s are a lower bound at this MFU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mcframe.config.batch_size import micro_batch_for
from mcframe.config.run_config import load_run_config
from mcframe.metrics.mfu import PEAK
from mcframe.training.build import build_optimizer, build_step
from mcframe.training.communication import PERSISTENT, exchange
from mcframe.training.flops import StepFlops
from mcframe.training.startup_summary import memory_estimate

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
TABLE = re.compile("(?<=<!-- plan -->\n).*(?=<!-- end of plan -->)", re.DOTALL)
GPU, MFU, A_NODE = "NVIDIA H100 80GB HBM3", 0.45, 8
INSIDE, BETWEEN = 450e9, 50e9
"""Bytes a second that a GPU sends to others of its node (NVLink 4), and to other nodes (a 400 Gb/s card a GPU)."""
CALLS = 4.0
"""Gathers of a weight in a micro-batch at ZeRO 3: forward and backward of the uncompressed pass and of variants."""
SIZES = ((8, 114_688), (64, 131_072))
"""GPUs, and tokens of a step that their number divides."""


def plan(gin: str, settings: list[str]) -> str:
    """Return assumptions and a row for each number of GPUs and stage of ZeRO."""
    loaded = load_run_config([gin], settings)
    run_config = loaded.run_config
    with torch.device("meta"):
        step = build_step(run_config, int(loaded.config.as_dict()["gpt.vocab_size"]))
    optimizer = build_optimizer(run_config)
    flops = StepFlops(step).at(run_config.variant_length(0) if step.model.strategy.count else 0).total
    trained = [each.numel() for each in step.parameters() if each.requires_grad]
    large = sum(count for count in trained if count > PERSISTENT)
    width = 2 if run_config.deepspeed.precision == "bf16" else 4
    lines = [
        f"Assumed: {GPU}, MFU {MFU} over all contexts, {INSIDE / 1e9:.0f} GB/s in a node of {A_NODE}, "
        f"{BETWEEN / 1e9:.0f} GB/s between nodes, no overlap of communication with computation, and {CALLS:g} "
        "gathers of a weight in a micro-batch at ZeRO 3. Memory is that of weights, gradients and optimizer, without "
        "activations.", "",
        "| GPUs | ZeRO | memory, GiB | sent a step and GPU, GB | computing, s | sending, s | tokens/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for gpus, batch in SIZES:
        sequences = batch // run_config.context.window // gpus
        accumulation = sequences // micro_batch_for(sequences, run_config.micro_batch_limit)
        for stage in (1, 2, 3):
            message = exchange(
                trained=sum(trained), large=large, width=width, stage=stage, accumulation=accumulation, calls=CALLS
            )
            staged = replace(run_config, deepspeed=replace(run_config.deepspeed, zero_stage=stage))
            memory = sum(memory_estimate(step, optimizer, staged, gpus).values()) / 2**30
            sent_bytes = message.sent(gpus)
            compute = flops * batch / (gpus * MFU * PEAK[GPU])
            send = sent_bytes / (INSIDE if gpus <= A_NODE else BETWEEN)
            lines.append(
                f"| {gpus} | {stage} | {memory:.2f} | {sent_bytes / 1e9:.2f} | {compute:.3f} | {send:.3f} | "
                f"{batch / (compute + send):,.0f} |"
            )
    return "\n".join(lines) + "\n"


def measure(gin: str, settings: list[str], rounds: int) -> str:
    """Run `mcframe bench` with one rank and two, and return a table."""
    cases = [part for stage in (1, 2, 3) for part in ("--case", f"deepspeed.zero_stage = {stage}")]
    rows: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            file = Path(folder) / f"{ranks}.json"
            own = [part for each in (*settings, "deepspeed.zero_stage = 0") for part in ("--set", each)]
            command = [sys.executable, "-m", "mcframe", "bench", gin, *own, *cases, "--json", str(file)]
            subprocess.run([*command, "--ranks", str(ranks), "--rounds", str(rounds)], check=True, stdout=sys.stderr)
            rows.append(json.loads(file.read_text("utf-8")))
    lines = ["| ZeRO | one rank, ms | two ranks, ms | times | sent, MiB | formula, MiB |", "| --- |" + " --- |" * 5]
    for stage, (one, two) in enumerate(zip(*rows, strict=True)):
        alone, both = one["figures"]["step_ms"], two["figures"]["step_ms"]
        measured, formula = sent(two["communicated"], 2) / 2**20, two["figures"]["formula_bytes"] / 2**20
        lines.append(f"| {stage} | {alone:,.0f} | {both:,.0f} | {alone / both:.2f} | {measured:.2f} | {formula:.2f} |")
    return "\n".join(lines) + "\n"


def sent(messages: dict[str, int], ranks: int) -> float:
    """Return the bytes that a rank sends with rings: a reduction to all ranks has two rounds."""
    rounds = {"allreduce": 2}
    return sum(rounds.get(name, 1) * size for name, size in messages.items()) * (ranks - 1) / ranks


def main() -> None:
    """Print a table; write the plan of run10 into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "measure"))
    parser.add_argument("--gin")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "measure":
        print(measure(options.gin or "gin/smoke.gin", options.set, options.rounds), end="")
        return
    text = plan(options.gin or "gin/run10.gin", options.set)
    print(text, end="")
    if options.gin is None and not options.set:
        PAGE.write_text(TABLE.sub(lambda _: text, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
