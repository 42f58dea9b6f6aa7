"""Draw docs/pictures/gists.svg from the tables of docs/gists.md.

python benchmarks/gists_plot.py

Left: recall, right answers with four blocks of 8 tokens in one gist each. Middle: text, nats lost on 16 tokens after
a collapsed block of 8 bytes. Both are means over three seeds. Right: the shortest working context of a window.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mcframe.context.context_tree import ContextTree

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "pictures" / "gists.svg"
COLOURS = {"full": "#8a8f98", "gist": "#1f77b4", "mean": "#e0a030", "drop": "#c0504d"}
BLOCK_SIZE = 32
WINDOWS = [2**power for power in range(9, 21)]


def table_rows(page: str, first_cells: list[str]) -> list[dict[str, list[float]]]:
    """Return the first row of a page's tables for each of `first_cells`: column -> numbers in the cell."""
    rows: dict[str, dict[str, list[float]]] = {}
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        columns, _, *cells_of_rows = (
            [re.sub(r"[*`]", "", cell).strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        for cells in cells_of_rows:
            numbers = [[float(number) for number in re.findall(r"[+-]?\d+\.\d+", cell)] for cell in cells]
            rows.setdefault(cells[0], dict(zip(columns, numbers, strict=True)))
    return [rows[name] for name in first_cells]


def recall_accuracy(page: str) -> dict[str, float]:
    """Return the percentage of right answers by condition, mean over seeds."""
    rows = table_rows(page, ["0", "1", "2"])
    return {name: mean(row[name][0] for row in rows) for name in COLOURS}


def text_loss(page: str) -> dict[str, dict[str, float]]:
    """Return text -> condition -> nats lost on the next 16 tokens, mean over seeds."""
    rows = table_rows(page, ["code, 0 to 15 tokens", "prose, 0 to 15 tokens"])
    return {
        text: {name: mean(row[name]) for name in ("gist", "mean", "drop")}
        for text, row in zip(("code", "prose"), rows, strict=True)
    }


def shortest_context(window: int, levels: int) -> int:
    """Return the entries of the shortest working context of a window."""
    return ContextTree(window=window, block_size=BLOCK_SIZE, levels=levels, tail=128).minimum_length


def draw(page: str) -> None:
    """Draw the three panels and write the picture."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mcframe", "font.size": 9})
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    recall, text, entries = figure.subplots(1, 3)
    accuracy = recall_accuracy(page)
    bars = recall.bar(list(accuracy), list(accuracy.values()), color=list(COLOURS.values()))
    recall.bar_label(bars, fmt="%.0f %%")
    recall.set(title="Recall at 8:1: right answers", ylim=(0, 115), yticks=[])
    for index, losses in enumerate(text_loss(page).values()):
        for offset, (name, nats) in enumerate(losses.items()):
            bars = text.bar(index + (offset - 1) * 0.28, nats, 0.26, color=COLOURS[name])
            text.bar_label(bars, fmt="%.3f")
    text.set(title="Text at 8:1: nats lost, next 16 tokens", ylim=(0, 0.145), yticks=[])
    text.set_xticks([0, 1], ["code", "prose"])
    text.legend(
        handles=[Patch(color=COLOURS[name]) for name in ("gist", "mean", "drop")],
        labels=["gist", "mean", "drop"],
        loc="upper left",
        frameon=False,
        ncols=3,
    )
    entries.loglog(WINDOWS, WINDOWS, color=COLOURS["full"], label="every token")
    for levels, style in ((1, "--"), (2, "-")):
        lengths = [shortest_context(window, levels) for window in WINDOWS]
        label = "gists of 32 tokens" if levels == 1 else "and of 1,024 tokens"
        entries.loglog(WINDOWS, lengths, style, color=COLOURS["gist"], label=label)
    entries.set(title="Entries of the shortest context", xlabel="tokens")
    entries.legend(frameon=False)
    for panel in (recall, text, entries):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    draw((DOCS / "gists.md").read_text("utf-8"))
    print(PICTURE)
