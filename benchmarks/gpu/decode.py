"""Latency of a session: milliseconds a generated token, as one line of JSON: `python -m benchmarks.gpu.decode RUN`."""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch

import mcframe
from mcframe.runtime.sampling import Sampling

TOKENS, ROUNDS = 32, 5


def main() -> None:
    """Append a history of two windows, generate, and print medians of the rounds."""
    run = mcframe.load_run(sys.argv[1], trust=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        run.model.to(device, torch.bfloat16)
    window = run.run_config.context.window
    session = run.session()
    ids = torch.randint(run.tokenizer.vocab_size - 1, (2 * window,), generator=torch.Generator().manual_seed(0))
    session.append(ids)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        count = sum(1 for _ in session.generate(TOKENS, Sampling(temperature=0.0)))
        times.append(1000 * (time.perf_counter() - start) / max(1, count))
    figures = {"ms_per_token": median(times[1:]), "first_ms_per_token": times[0], "history": 2 * window}
    print(json.dumps(figures | {"budget": session.config.budget, "device": device}))


if __name__ == "__main__":
    main()
