"""Make the packages of another environment importable in this one: `python tests/support/borrow.py .tox/tests`.

A second torch would take gigabytes.
"""

import sys
import sysconfig
from pathlib import Path


def borrow(lender: Path) -> None:
    own = Path(sysconfig.get_path("purelib"))
    theirs = lender.resolve() / own.relative_to(Path(sys.prefix).resolve())
    if not theirs.is_dir():
        sys.exit(f"{lender}: missing environment; run `tox -e tests --notest` first")
    # As a site directory, so that editable installations are found too.
    (own / "borrowed.pth").write_text(f"import site; site.addsitedir({str(theirs)!r})\n", "utf-8")


if __name__ == "__main__":
    borrow(Path(sys.argv[1]))
