"""Write GFLOP a dataset token, preset by preset, into docs/performance.md: `python benchmarks/flop_table.py`.

torch counts the matrix products of a step of one sequence on the meta device. No GPU, no text, seconds a row.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mcframe.config.run_config import load_run_config
from mcframe.training.build import build_step
from mcframe.training.flops import StepFlops

PRESETS = Path(__file__).parents[1] / "gin"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TABLE = re.compile("(?<=<!-- flop table -->\n).*(?=<!-- end of flop table -->)", re.DOTALL)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "smoke": ("smoke", ()),
    "quickstart": ("quickstart", ()),
    "quickstart, its plain baseline": ("quickstart", ("run.variants = @variants.none",)),
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
    "run10, its plain baseline": ("run10", ("run.variants = @variants.none",)),
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
    """Write the table into the page."""
    rows = ["| run | depth × width, window, variants | plain | step | recomputed |", "| --- | --- | --- | --- | --- |"]
    for name, (preset, settings) in ROWS.items():
        rows.append(f"| {name} | {row(preset, settings)} |")
        print(rows[-1], flush=True)
    page = PAGE.read_text("utf-8")
    PAGE.write_text(TABLE.sub(lambda _: "\n".join(rows) + "\n", page), "utf-8")


if __name__ == "__main__":
    main()
