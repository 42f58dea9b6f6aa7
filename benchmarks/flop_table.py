"""The FLOP model against torch's counter, preset by preset: `python benchmarks/flop_table.py` prints Markdown.

A step of one sequence runs whole, forward and backward, on the meta device: shapes are real, nothing is computed. The
counter sees matrix products, attention as plain ones. No GPU, no text, seconds a row.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcframe.config.run_config import load_run_config
from mcframe.training.build import build_model
from mcframe.training.flops import Costs

PRESETS = Path(__file__).parents[1] / "gin"
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "smoke": ("smoke", ()),
    "quickstart": ("quickstart", ()),
    "quickstart, its twin": ("quickstart_baseline", ()),
    "quickstart, contextual GistNet": ("quickstart", ("run.gistnet = @gistnet.contextual",)),
    "quickstart, mean GistNet": ("quickstart", ("run.gistnet = @gistnet.mean",)),
    "quickstart, variants by LensNet": ("quickstart", ("run.variants = @variants.lens_guided",)),
    "quickstart, contrast, reconstruction, policy KL": (
        "quickstart",
        ("objectives.kl_contrast = 1.0", "objectives.reconstruction_weight = 0.1", "objectives.policy_kl_weight = 0.1"),
    ),
    "quickstart, base model frozen": ("quickstart", ("run.trainable = ('gistnet', 'lensnet')",)),
    "quickstart, biases of gists": ("quickstart", ("gpt.gist_bias = -8.0",)),
    "recall": ("recall", ("run.start_from = None",)),
    "run10": ("run10", ()),
    "run10, activations recomputed": ("run10", ("gpt.activation_checkpointing = True",)),
    "run10, its twin": ("run10_baseline", ()),
}
BYTES_AND_SEPARATOR = 257


def row(preset: str, settings: tuple[str, ...]) -> str:
    """Cells of a row: sizes, GFLOP a dataset token by the model (once, and again), counted, their ratio."""
    loaded = load_run_config([PRESETS / f"{preset}.gin"], list(settings))
    run_config = loaded.run_config
    vocabulary = loaded.config.as_dict().get("gpt.vocab_size") or BYTES_AND_SEPARATOR
    with torch.device("meta"):
        model = build_model(run_config, int(vocabulary))
        window, count = model.tree.window, model.strategy.count
        length = run_config.variant_length(0) if count else 0
        cost = Costs(model).at(length, run_config.rebuild(0))
        tokens, seeds = torch.zeros(1, window + 1, dtype=torch.long), torch.zeros(1, count, dtype=torch.long)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(tokens, seeds, length, None, run_config.rebuild(0))[0].backward()
    counted = counter.get_total_flops() / window
    ratio = (cost.total + cost.recomputed) / counted
    gpt = model.gpt
    sizes = f"{gpt.depth} × {gpt.width}, T = {window:,}, {f'{count} × {length:,}' if count else 'none'}"
    again = f"{cost.recomputed / 1e9:.4g}" if cost.recomputed else "–"
    return f"{sizes} | {cost.plain / 1e9:.4g} | {cost.total / 1e9:.4g} | {again} | {counted / 1e9:.4g} | {ratio:.4f}"


def main() -> None:
    """Print the table."""
    print("| run | depth × width, window, variants | plain | all, once | computed again | counted | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (preset, settings) in ROWS.items():
        print(f"| {name} | {row(preset, settings)} |", flush=True)


if __name__ == "__main__":
    main()
