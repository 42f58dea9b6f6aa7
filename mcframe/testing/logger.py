"""Requirements of metric loggers: they accept all that a run logs and change nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mcframe.hookspecs import Histogram
from mcframe.testing.assertions import expect
from mcframe.testing.host_sync import random_state
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement

METRICS: tuple[dict[str, float], ...] = (
    {"train/loss": 2.5, "mc/preference_corr_mean": math.nan},
    {"val/loss": math.inf, "mc/x": -1e-30},
    {},
)


@requirement("S1", "It accepts all metrics, texts, images and histograms, and changes nothing", "logger", after=("P6",))
def s1_accepts(plugin: PluginUnderTest) -> None:
    """NaN, infinity and empty bins included; two calls at one token count. Metrics and random states stay."""
    before, logger = random_state(), plugin.build()
    for step, metrics in enumerate(METRICS):
        passed = dict(metrics)
        logger.write(1024 * (1 + step // 2), 1 + step // 2, passed)
        expect(repr(passed) == repr(metrics), f"it has changed the metrics to {passed}")
    logger.text(1024, "contexts", "·1·|·\n")
    logger.image(1024, "mc/lod_map", np.zeros((3, 5, 3), dtype=np.uint8))
    logger.histogram(1024, "mc/score", Histogram([-1.0, 0.0, 1.0], [0, 3]))
    logger.close()
    expect(random_state() == before, "a global random state has advanced")


@requirement("S2", "`location` is None, or a label and a path or command", "logger", after=("P6",))
def s2_location(plugin: PluginUnderTest) -> None:
    """The closing summary prints it."""
    logger = plugin.build()
    found: Any = getattr(logger, "location", None)
    logger.close()
    pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, str) and each for each in found)
    expect(found is None or pair, f"location is {found!r}")
