"""Requirements of loggers: they accept everything that a run writes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mcframe.hookspecs import Histogram
from mcframe.testing.host_sync import random_state
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement


@requirement(
    "S1", "It takes metrics, whatever their values, and may be told of one step twice", "logger", after=("P9",)
)
def s1_metrics(plugin: PluginUnderTest) -> None:
    """NaN, infinity and very small numbers among them; a logging interval and a validation at one token count."""
    logger = plugin.build()
    logger.write(1024, 1, {"train/loss": 2.5, "mc/preference_corr_mean": math.nan})
    logger.write(1024, 1, {"val/loss": math.inf, "mc/adv_delta_mean": -1e-30})
    logger.write(2048, 2, {})
    logger.close()


@requirement("S2", "It takes texts, pictures and distributions, or leaves them alone", "logger", after=("P9",))
def s2_others(plugin: PluginUnderTest) -> None:
    """Of several lines, of any size, with empty bins."""
    logger = plugin.build()
    logger.text(1024, "contexts", "·1·|·\n")
    logger.image(1024, "mc/lod_map", np.zeros((3, 5, 3), dtype=np.uint8))
    logger.histogram(1024, "mc/score", Histogram([-1.0, 0.0, 1.0], [0, 3]))
    logger.close()


@requirement("S3", "`location` is None, or a label and where to look", "logger", after=("P9",))
def s3_location(plugin: PluginUnderTest) -> None:
    """The closing summary prints it."""
    logger = plugin.build()
    location: Any = logger.location
    logger.close()
    pair = (
        isinstance(location, tuple) and len(location) == 2 and all(isinstance(each, str) and each for each in location)
    )
    expect(location is None or pair, f"location is {location!r}")


@requirement("S4", "It does not change what a run computes", "logger", after=("S1",))
def s4_aside(plugin: PluginUnderTest) -> None:
    """Neither a global random state nor the metrics that it is shown."""
    before, metrics = random_state(), {"train/loss": 2.5}
    logger = plugin.build()
    logger.write(1024, 1, metrics)
    logger.close()
    expect(random_state() == before, "a global random state has moved")
    expect(metrics == {"train/loss": 2.5}, f"it has changed the metrics to {metrics}")
