"""Baselines that `--baseline` and `--drop-baseline` derive from a gin file."""

from __future__ import annotations

from mcframe.errors import UserError

BASELINES = {"--baseline": "run.variants = @variants.none", "--drop-baseline": "run.gistnet = None"}
"""Option -> the binding that it adds. The plain baseline has neither variants nor GistNet nor LensNet."""


def baseline_option(*, baseline: bool, drop_baseline: bool) -> str | None:
    """Return the option that is set, if any. Raises UserError if both are."""
    if baseline and drop_baseline:
        raise UserError(
            "expected --baseline or --drop-baseline, got both",
            remedy="Train them as two runs: the plain baseline has no variants in which blocks could be dropped.",
        )
    return "--baseline" if baseline else "--drop-baseline" if drop_baseline else None


def run_name(stem: str, option: str | None) -> str:
    """Return the name of a run by its gin file: `quickstart`, `quickstart_baseline` or `quickstart_drop_baseline`."""
    return f"{stem}{option[1:].replace('-', '_')}" if option else stem
