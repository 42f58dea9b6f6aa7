"""Where the mcframe that is running was installed from, for packages that need the same one elsewhere."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, distribution

from mcframe import __version__

PACKAGE = "mcframe"


def versions() -> str:
    """The versions of mcframe that a plug-in written today fits: `>=0.1,<0.2`."""
    found = re.match(r"(\d+)\.(\d+)", __version__)
    if not found or (major := int(found[1])) >= 1:
        return f">={found[0]},<{int(found[1]) + 1}" if found else ""
    return f">={major}.{found[2]},<{major}.{int(found[2]) + 1}"


def requirement() -> str:
    """What pip installs it by anywhere: its repository where it came from one, else its name and `versions()`.

    A folder or wheel of this machine is of no use elsewhere, so it counts as the latter.
    """
    try:
        recorded = distribution(PACKAGE).read_text("direct_url.json")
    except PackageNotFoundError:
        recorded = None
    origin = json.loads(recorded) if recorded else {}
    if vcs := origin.get("vcs_info"):
        return f"{PACKAGE} @ {vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
    return f"{PACKAGE}{versions()}"
