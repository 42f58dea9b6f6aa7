"""Write the GPU section of docs/performance.md from results: `python benchmarks/gpu/report.py FOLDER/results.json`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SECTION = re.compile("(?<=<!-- gpu -->\n).*(?=<!-- end of gpu -->)", re.DOTALL)
GOAL = 0.45
"""MFU over all contexts that run10 should reach on one H100."""
_NAMES = {
    "train/tok_per_sec": ("tokens/s", ",.0f"), "train/mfu": ("MFU", ".3f"), "train/memory_gib": ("memory, GiB", ".1f"),
    "loss_first": ("loss, first", ".3f"), "loss_last": ("loss, last", ".3f"),
    "train/step_ms": ("step, ms", ",.1f"), "train/base_ms": ("uncompressed pass, ms", ",.1f"),
    "mc/build_ms": ("gists, ms", ",.1f"), "mc/variant_ms": ("variants, ms", ",.1f"),
    "mc/lens_ms": ("LensNet, ms", ",.1f"),
    "train/backward_ms": ("backward, ms", ",.1f"), "train/optimizer_ms": ("optimizer, ms", ",.1f"),
    "train/data_ms": ("data, ms", ",.1f"), "micro_batch": ("micro-batch, sequences", "d"),
}  # fmt: skip


def section(results: Mapping[str, Any]) -> str:
    """Return the section: machine, training, steps against their floor, operations, decoding, and what failed."""
    own = {part["name"]: part for part in results["parts"]}
    figures = {name: part["figures"] for name, part in own.items()}
    lines = [_machine(results), "", *_training(figures), *_bench(figures), *_goal(figures), *_operations(figures)]
    if decode := figures.get("decode"):
        lines += [
            f"A session of {decode['history']:,} tokens, budget {decode['budget']:,}: {decode['ms_per_token']:.2f} ms "
            f"a generated token on {decode['device']}.",
            "",
        ]
    lines += ["| part | state | seconds |", "| --- | --- | --- |"]
    lines += [f"| {name} | {part['status']} | {part['seconds']:.0f} |" for name, part in own.items()]
    for name, part in own.items():
        if part["status"] != "ok":
            lines += ["", f"`{name}`, {part['status']}: {_reason(part)}"]
    return "\n".join(lines) + "\n"


def _machine(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    rehearsal = "**Rehearsal with tiny sizes.** " if results["rehearsal"] else ""
    if "error" in machine:
        return f"{rehearsal}The machine could not be read: {machine['error'].splitlines()[-1]}"
    memory = f", {machine['memory_gib']:.0f} GiB" if "memory_gib" in machine else ""
    return (
        f"{rehearsal}{machine['device']}{memory}, torch {machine['torch']}, deepspeed {machine['deepspeed']}, revision "
        f"{machine['revision']}, {results['started'][:10]}: `benchmarks/gpu/run.sh`."
    )


def _training(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of runs: medians of the last half of their log lines."""
    runs = [name for name in ("run10", "baseline", "micro_batch") if figures.get(name)]
    if not runs:
        return []
    lines = [f"| | {' | '.join(runs)} |", "| --- |" + " --- |" * len(runs)]
    for name, (label, digits) in _NAMES.items():
        cells = [figures[run].get(name) for run in runs]
        if any(cell is not None for cell in cells):
            lines.append(f"| {label} | {' | '.join('' if cell is None else format(cell, digits) for cell in cells)} |")
    return [*lines, ""]


def _bench(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [(name, row) for name in ("bench", "compiled") for row in figures.get(name, {}).get("rows", ())]
    if not rows:
        return []
    lines = ["| setting | step ms | plain ms | times plain | times FLOPs | times floor |", "| --- |" + " --- |" * 5]
    for name, row in rows:
        own = row["figures"]
        lines.append(
            f"| {'eager' if name == 'bench' else name} | {own['step_ms']:,.1f} | {own['baseline_ms']:,.1f} | "
            f"{own['step/baseline']:.2f} | {own['flops/baseline']:.2f} | {own['step/floor']:.2f} |"
        )
    return [*lines, ""]


def _goal(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what stands between MFU and goal: networks slower than the peak, and time outside them."""
    rows = figures.get("bench", {}).get("rows", ())
    if not rows or "mfu" not in rows[0]["figures"]:
        return []
    own = rows[0]["figures"]
    times = own["step_ms"] / own["floor_ms"]
    networks = own["mfu"] * times
    return [
        f"MFU of a step is {own['mfu']:.3f}, the goal {GOAL}. Its networks alone reach {networks:.3f} of the "
        f"peak; the step with its optimizer takes {times:.2f} of their time. At that speed of networks, the goal needs "
        f"{max(1.0, networks / GOAL):.2f} or less.",
        "",
    ]


def _operations(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows: Sequence[Mapping[str, Any]] = figures.get("profile", {}).get("operations", ())
    if not rows:
        return []
    lines = ["| operation | calls | ms | fraction |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row['operation']}` | {row['calls']:,} | {row['ms']:,.1f} | {row['fraction']} |" for row in rows]
    return [*lines, ""]


def _reason(part: Mapping[str, Any]) -> str:
    """Return the last line of the output with letters, without the frame of a message."""
    lines = [line.strip(" │╭╰─╮╯") for line in part.get("tail", "").splitlines()]
    found = [line for line in lines if re.search(r"[A-Za-z]{3}", line)]
    return found[-1][:200] if found else "no output"


def main() -> None:
    """Write the section into the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--print", action="store_true", help="print it, and leave the page as it is")
    options = parser.parse_args()
    text = section(json.loads(options.results.read_text("utf-8")))
    if options.print:
        sys.stdout.write(text)
    else:
        PAGE.write_text(SECTION.sub(lambda _: text, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
