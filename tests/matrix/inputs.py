"""Writes what tests/matrix/settings.toml names: the sections of docs/ as a corpus, and a tokenizer of 300 entries."""

import sys
from pathlib import Path

from mcframe.data.sources import LocalFiles
from mcframe.data.tokenizers import train_bpe

DOCS = Path(__file__).parents[2] / "docs"


def write(folder: Path) -> None:
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    for page in sorted(DOCS.rglob("*.md")):
        for number, section in enumerate(page.read_text("utf-8").split("\n## ")):
            (folder / "inputs" / f"{page.stem}-{number}.txt").write_text(section, "utf-8")
    train_bpe(LocalFiles(str(folder / "inputs")), 300, folder / "bpe.json", share=0.02)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
