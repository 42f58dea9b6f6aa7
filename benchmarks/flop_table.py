"""GFLOP a dataset token, preset by preset: `python benchmarks/flop_table.py` prints Markdown.

torch counts the matrix products of a step of one sequence on the meta device. No GPU, no text, seconds a row.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mcframe.config.run_config import load_run_config
from mcframe.training.build import build_step
from mcframe.training.flops import StepFlops

PRESETS = Path(__file__).parents[1] / "gin"
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "smoke": ("smoke", ()),
    "quickstart": ("quickstart", ()),
    "quickstart, its plain baseline": ("quickstart_baseline", ()),
    "quickstart, contextual GistNet": ("quickstart", ("run.gistnet = @gistnet.contextual",)),
    "quickstart, mean GistNet": ("quickstart", ("run.gistnet = @gistnet.mean",)),
    "quickstart, variants by LensNet": ("quickstart", ("run.variants = @variants.lens_guided",)),
    "quickstart, contrast, reconstruction, EMA-KL": (
        "quickstart",
        ("loss.distillation.contrast = 1.0", "run.extra_losses = [@loss.reconstruction, @loss.ema_kl]"),
    ),
    "quickstart, base model frozen": ("quickstart", ("run.trainable = ('gistnet', 'lensnet')",)),
    "quickstart, biases of gists": ("quickstart", ("gpt.gist_bias = -8.0",)),
    "recall": ("recall", ("run.start_from = None",)),
    "run10": ("run10", ()),
    "run10, activations recomputed": ("run10", ("gpt.activation_checkpointing = True",)),
    "run10, its plain baseline": ("run10_baseline", ()),
}
BYTES_AND_SEPARATOR = 257


def row(preset: str, settings: tuple[str, ...]) -> str:
    """Return the cells of a row: sizes, and GFLOP a dataset token of the plain model, of the step, and recomputed."""
    loaded = load_run_config([PRESETS / f"{preset}.gin"], list(settings))
    run_config = loaded.run_config
    vocabulary = loaded.config.as_dict().get("gpt.vocab_size") or BYTES_AND_SEPARATOR
    with torch.device("meta"):
        step = build_step(run_config, int(vocabulary))
    gpt, tree, count = step.model.gpt, step.model.tree, step.model.strategy.count
    length = run_config.variant_length(0) if count else 0
    flops = StepFlops(step).at(length)
    sizes = f"{gpt.depth} × {gpt.width}, T = {tree.window:,}, {f'{count} × {length:,}' if count else 'none'}"
    again = f"{flops.recomputed / 1e9:.4g}" if flops.recomputed else "–"
    return f"{sizes} | {flops.plain / 1e9:.4g} | {flops.total / 1e9:.4g} | {again}"


def main() -> None:
    """Print the table."""
    print("| run | depth × width, window, variants | plain | step | recomputed |")
    print("| --- | --- | --- | --- | --- |")
    for name, (preset, settings) in ROWS.items():
        print(f"| {name} | {row(preset, settings)} |", flush=True)


if __name__ == "__main__":
    main()
