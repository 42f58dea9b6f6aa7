"""Lets this environment see the packages of another: `python tests/support/borrow.py .tox/tests`.

torch is gigabytes; one environment a package must not mean one torch a package.
"""

import sys
import sysconfig
from pathlib import Path


def borrow(lender: Path) -> None:
    own = Path(sysconfig.get_path("purelib"))
    theirs = lender.resolve() / own.relative_to(Path(sys.prefix).resolve())
    if not theirs.is_dir():
        sys.exit(f"there is no environment in {lender} to borrow packages from: run `tox -e tests --notest` first")
    # As a site directory, so that what is installed there in editable form is found too.
    (own / "borrowed.pth").write_text(f"import site; site.addsitedir({str(theirs)!r})\n", "utf-8")


if __name__ == "__main__":
    borrow(Path(sys.argv[1]))
