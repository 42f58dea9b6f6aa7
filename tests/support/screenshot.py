"""Screenshot of the top of a page, by Chromium: python -m tests.support.screenshot PAGE.html OUT.png."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support.chromium import Browser

WIDTH, HEIGHT = 1400, 1150


def main(page: Path, out: Path) -> None:
    """Open the page and save its top."""
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.window(WIDTH)
        browser.open(page.resolve().as_uri())
        shown = Image.open(io.BytesIO(browser.screenshot()))
        shown.crop((0, 0, shown.width, min(HEIGHT, shown.height))).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
