"""Requirement specifier of the running mcframe, for packages that need the same one on other machines."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, distribution

from mcframe import __version__

PACKAGE = "mcframe"


def versions() -> str:
    """Return the versions of mcframe that a new plug-in supports, such as `>=0.1,<0.2`."""
    found = re.match(r"(\d+)\.(\d+)", __version__)
    if not found or (major := int(found[1])) >= 1:
        return f">={found[0]},<{int(found[1]) + 1}" if found else ""
    return f">={major}.{found[2]},<{major}.{int(found[2]) + 1}"


def requirement() -> str:
    """Return the repository that mcframe was installed from, else its name with `versions()`.

    A local folder or wheel does not exist on other machines, so it counts as the latter.
    """
    try:
        recorded = distribution(PACKAGE).read_text("direct_url.json")
    except PackageNotFoundError:
        recorded = None
    origin = json.loads(recorded) if recorded else {}
    if vcs := origin.get("vcs_info"):
        return f"{PACKAGE} @ {vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
    return f"{PACKAGE}{versions()}"
