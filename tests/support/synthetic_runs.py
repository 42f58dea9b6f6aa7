"""Run directories with synthetic metrics: a healthy run, and the run of the founding review."""

from __future__ import annotations

import json
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 170
CONFIG = {
    "run.seed": "0",
    "run.batch_tokens": "12288",
    "run.text": "@text.huggingface",
    "run.tokenizer": "@tokenizer.bpe",
    "tokenizer.bpe.vocab_size": "65536",
    "context.window": "2048",
    "lens_targets.sides": "'both'",
    "gpt.depth": "12",
    "gpt.width": "768",
}
DIP = (60, 100)


def noise(rng: np.random.Generator, n: int, rho: float = 0.3) -> np.ndarray:
    """Return an autoregression of unit variance, like the noise of a run's metrics."""
    drawn = rng.standard_normal(n + 50)
    scaled = (np.sqrt(1 - rho**2) * drawn).tolist()
    return np.array(list(accumulate(scaled, lambda before, new: new + rho * before)))[50:]


def healthy(seed: int = 0, n: int = STEPS, rho: float = 0.3, per_step: int = 12288) -> dict[str, np.ndarray]:
    """Return metrics [n] of a run without a finding; timers sum to the step."""
    rng = np.random.default_rng(seed)

    def around(mean: Any, relative: float) -> np.ndarray:
        return mean * (1 + relative * noise(rng, n, rho))

    progress = np.linspace(0, 1, n)
    timers = {"build": 26.0, "variant": 22.0, "lens": 23.5, "variant_pack": 4.0, "other": 240.0}
    metrics = {f"mc/{name}_ms": around(ms, 0.02) for name, ms in timers.items()}
    step = sum(metrics.values())
    metrics["mc/controller_ms"] = step - metrics["mc/other_ms"]
    loss = 3.0 + 5.0 * np.exp(-4 * progress) - 0.6 * progress
    return {
        **metrics,
        "train/tok_per_sec": 1000 * per_step / step,
        "train/tokens_per_step": np.full(n, float(per_step)),
        "train/mfu": around(0.41, 0.02),
        "train/lr": np.minimum(1, np.minimum(20 * progress + 0.05, 5 * (1.001 - progress))),
        "train/loss": loss + 0.7 + 0.03 * noise(rng, n, rho),
        "train/loss_lod0": loss + 0.03 * noise(rng, n, rho),
        "mc/adv_delta_mean": around(0.35, 0.1),
        "mc/lod_delta/1": 0.12 - 0.02 * progress + 0.02 * noise(rng, n, rho),
        "mc/lod_loss/0": loss + 0.03 * noise(rng, n, rho),
        "mc/lod_loss/1": loss + 0.5 + 0.05 * noise(rng, n, rho),
        "mc/preference_corr_mean": 0.25 + 0.08 * noise(rng, n, rho),
        "mc/wc_length": np.full(n, 1831.0),
        "train/update_ratio/gpt.blocks.0": around(0.02, 0.1),
        "train/update_ratio/lensnet.read": around(0.05, 0.1),
    }


def like_the_seed(seed: int = 0, per_step: int = 12288) -> dict[str, np.ndarray]:
    """Return the metrics of run10: a dip while tensors were packed on the host, an idle device, ΔNLL of 5 to 6 nats."""
    rng = np.random.default_rng(seed)
    n, progress = STEPS, np.linspace(0, 1, STEPS)
    dip = slice(*DIP)
    speed = np.full(n, 3900.0)
    speed[dip] = 3100.0
    pack = np.full(n, 4.0)
    pack[dip] += 1000 * 12288 * (1 / 3100 - 1 / 3900)
    metrics = healthy(seed, per_step=per_step)
    for name, ms in {"build": 260.0, "variant": 220.0, "lens": 235.0, "other": 2400.0}.items():
        metrics[f"mc/{name}_ms"] = ms * (1 + 0.02 * noise(rng, n))
    metrics["mc/variant_pack_ms"] = pack * (1 + 0.05 * noise(rng, n))
    parts = ("build", "variant", "lens", "variant_pack")
    metrics["mc/controller_ms"] = sum(metrics[f"mc/{part}_ms"] for part in parts)
    metrics["train/tok_per_sec"] = speed * (1 + 0.01 * noise(rng, n))
    metrics["train/mfu"] = 0.0041 * (1 + 0.01 * noise(rng, n))
    metrics["mc/adv_delta_mean"] = 5.5 + 0.15 * noise(rng, n)
    metrics["mc/lod_delta/1"] = 3.0 + 2.0 * progress + 0.2 * noise(rng, n)
    metrics["mc/lod_loss/0"] = 5.5 + 0.05 * noise(rng, n)
    metrics["mc/lod_loss/1"] = 6.65 + 0.08 * noise(rng, n)
    metrics["mc/preference_corr_mean"] = 0.25 + 0.08 * noise(rng, n)
    return metrics


def write_run(
    directory: Path,
    metrics: dict[str, np.ndarray],
    *,
    config: dict[str, str] | None = CONFIG,
    evaluation: dict[str, float] | None = None,
    provenance: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write a run directory with one line per step, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    n = len(next(iter(metrics.values())))
    per_step = int(metrics.get("train/tokens_per_step", np.array([12288]))[0])
    began = time.time() - 10_000_000
    with (directory / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for at in range(n):
            line: dict[str, Any] = {"tokens": (at + 1) * per_step, "step": at + 1, "time": round(began + 3 * at, 3)}
            line |= {name: float(v[at]) if np.isfinite(v[at]) else None for name, v in metrics.items()}
            file.write(json.dumps(line) + "\n")
    if config is not None:
        text = "\n".join(f"{key} = {value}" for key, value in sorted(config.items()))
        (directory / "operative.gin").write_text(text + "\n", "utf-8")
    (directory / "provenance.json").write_text(json.dumps(provenance or {"revision": "abc", "machine": {}}), "utf-8")
    if evaluation:
        (directory / "evaluation").mkdir()
        (directory / "evaluation" / "eval.json").write_text(json.dumps({"metrics": evaluation}), "utf-8")
    if finished:
        (directory / "summary.json").write_text(json.dumps({"status": "finished", "tokens": n * per_step}), "utf-8")
    return directory
