"""`mcframe metrics`: the complete list, a part of it, one logged name; as a table and as JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.metrics.catalogue import CATALOGUE


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["metrics", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def names(*arguments: str) -> list[str]:
    return [metric["name"] for metric in json.loads(printed(*arguments, "--json"))]


def test_catalogue_is_listed_without_a_pattern():
    assert names() == [metric.name for metric in CATALOGUE]
    table = printed()
    assert all(metric.name.split("/")[-1] in table for metric in CATALOGUE)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train/loss", ["train/loss"]),  # a name that is a part of another's
        ("mc/lod_delta/2", ["mc/lod_delta/{lod}"]),
        ("mc/variant*_ms", ["mc/variant_ms", "mc/variant_pack_ms"]),
        ("val/*", ["val/loss", "val/bpb"]),
        ("eval/focus_quality/at_25/gain/drop_low", ["eval/{evaluation}/at_{length}/gain/{condition}"]),
    ],
)
def test_pattern_is_a_logged_name_a_part_or_a_glob(pattern, expected):
    assert names(pattern) == expected


def test_row_has_unit_direction_and_meaning():
    (row,) = (line for line in printed("train/mfu").splitlines() if "train/mfu" in line)
    assert "fraction" in row
    assert "higher" in row
    assert "0.41 is 41 %" in row


def test_unknown_name_ends_in_one_message():
    result = CliRunner().invoke(app, ["metrics", "train/tok_per_sex"])
    assert result.exit_code == 2
    assert "did you mean train/tok_per_sec" in " ".join(result.output.replace("│", " ").split())
