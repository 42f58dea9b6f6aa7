"""The pages and the output of `mcframe review` and `mcframe compare`."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.errors import UserError
from mcframe.review.apply_rules import apply_rules
from mcframe.review.comparison import groups, named
from mcframe.review.finding import Case, Plot
from mcframe.review.plots import draw
from mcframe.review.record import read_run
from mcframe.review.rules import read_rules
from mcframe.review.tables import with_error
from tests.support.synthetic_runs import CONFIG, healthy, like_the_seed, write_run

VOID = {"meta", "link", "br", "img", "use", "path"}


def mcframe(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))


def pages(folder, name="review"):
    """Return the HTML and the Markdown in a folder."""
    return [(folder / f"{name}.{end}").read_text("utf-8") for end in ("html", "md")]


class Page(HTMLParser):
    """References, texts, tags and styles of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.references, self.text, self.tags, self.styles, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "srcset", "xlink:href", "data", "action", "poster", "background"):
                self.references.append(value)
            if name.startswith("on"):
                raise AssertionError(f"{name} runs a script")
            if name in ("style", "clip-path", "fill"):
                self.styles.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.text).append(data)


def check_is_self_contained(text):
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    for style in page.styles:
        assert "@import" not in style
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", style))
    assert "://" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    return page


@pytest.fixture(scope="module")
def seed_run(tmp_path_factory):
    """Return run10 with its review in `review`."""
    run = write_run(
        tmp_path_factory.mktemp("runs") / "run10", like_the_seed(),
        provenance={"command": ["a", "<b>&"], "revision": "abc"},
    )  # fmt: skip
    result = mcframe("review", run)
    assert result.exit_code == 0, result.output
    assert "mc/variant_pack_ms" in result.output
    return run


def test_the_review_of_the_founding_run(seed_run):
    html, markdown = pages(seed_run / "review")
    page = check_is_self_contained(html)
    assert page.tags.count("article") == 5
    assert page.tags.count("svg") >= 9
    headings = re.findall(r"^## (.+)$", markdown, re.M)
    assert headings == [
        "Summary", "Training throughput", "Controller metrics: LOD layout", "Controller metrics: LensNet",
        "Controller metrics: variant quality", "Weights by module", "Rules: findings", "Next steps", "Provenance",
    ]  # fmt: skip
    for text in (*headings, "0.41 is 41 %", "most likely timer: mc/variant_pack_ms", "<b>&"):
        assert text in "".join(page.text)
    for picture in re.findall(r"!\[.*?\]\((.+?)\)", markdown):
        assert (seed_run / "review" / picture).read_bytes().startswith(b"\x89PNG")
    assert markdown.count("### ") == 5
    # Texts of plots have the colour of the page.
    assert "currentColor" in html
    assert not re.search(r"#010203|fill: #000000|stroke: #000000", html)


def test_tables_have_means_trends_and_meanings(seed_run):
    _, markdown = pages(seed_run / "review")
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in markdown.splitlines() if line.startswith("| mc/")}
    _, unit, _, _, mean, trend, meaning = rows["mc/lod_delta/1"]
    assert unit == "nats"
    late = read_run(seed_run).series["mc/lod_delta/1"].late(0.5)
    assert float(mean.split(" ± ")[0]) == pytest.approx(late.mean(), abs=0.01)
    assert trend.startswith("↗ +0.9")
    assert "at most context.horizon after a span" in meaning
    assert rows["mc/build_ms"][5] == "→"


def test_a_healthy_run_with_its_baseline_own_rules_and_working_contexts(tmp_path):
    run, baseline = write_run(tmp_path / "run", healthy()), write_run(tmp_path / "baseline", healthy(1))
    text = "focused ·1·22|··  9 of 16 entries, 2 gists\n<script>alert(1)</script> & ·1|·  9 of 16"
    (run / "texts.jsonl").write_text(json.dumps({"name": "working_contexts", "tokens": 12288, "text": text}) + "\n")
    (tmp_path / "mine.toml").write_text("[slow_pack]\nms = 4000.0\n")
    options = ("--against", baseline, "--from", 5, "--to", 160, "--rules", tmp_path / "mine.toml")
    result = mcframe("review", run, *options)
    assert result.exit_code == 0, result.output
    assert "No rule has a finding." in result.output
    html, markdown = pages(run / "review")
    page = check_is_self_contained(html)
    for expected in ("Steps 5 to 160", "The two runs read the same tokens", "that of baseline", "mine.toml"):
        assert expected in markdown
    assert text.splitlines()[0] in markdown
    assert (
        'focused <span class="raw">·</span><span class="lod1">1</span><span class="raw">·</span>'
        '<span class="lod2">22</span><span class="cursor">|</span><span class="raw">··</span>  9 of 16 entries, 2 gists'
    ) in html
    assert "<script>alert(1)</script> & ·1|·  9 of 16" in "".join(page.text)


def test_a_plot_is_as_high_as_its_legends(tmp_path):
    run = read_run(write_run(tmp_path / "a run with a name longer than thirty characters", healthy()))
    runs = {run.name: run, f"{run.name} again": run}
    heights = []
    for metrics in (("train/loss",), ("train/loss", *(name for name in run.series if name.startswith("mc/")))):
        svg = draw(Plot("many", "Many", metrics), runs).svg
        baselines = [float(y) for y in re.findall(r'<text [^>]* y="([-.0-9]+)"', svg)]
        heights.append(float(re.search(r'viewBox="0 0 \S+ (\S+)"', svg)[1]))
        assert 8 < min(baselines) < max(baselines) < heights[-1]
    assert heights[0] == pytest.approx(72 * 2.9)
    assert heights[1] > 2 * heights[0]


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [(3745.3, 192.6, "3,750 ± 190"), (0.00507, 0.000493, "0.00507 ± 0.00049"), (1.5, 0.2, "1.50 ± 0.20"),
     (0.0041, 9.4e-9, "0.0041 ± 9.4e-09"), (12.0, 3.4, "12.0 ± 3.4"), (123456.0, 1234.0, "123,500 ± 1,200")],
)  # fmt: skip
def test_a_mean_has_as_many_decimals_as_its_error(value, half, expected):
    assert with_error(value, half) == expected


@pytest.mark.parametrize("lines", [1, 5])
def test_two_reviews_of_a_plain_run_that_has_only_begun_are_equal(tmp_path, lines):
    metrics = {name: values for name, values in healthy(n=lines).items() if not name.startswith("mc/")}
    run = write_run(tmp_path / "run", metrics, config=None, finished=False)
    for out in ("one", "two"):
        result = mcframe("review", run, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    assert pages(tmp_path / "one") == pages(tmp_path / "two")
    for expected in ("too few independent", "no variants were trained"):
        assert expected in pages(tmp_path / "one")[1]


def test_rules_of_a_user(seed_run, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "[throughput_dip]\ndrop = 0.5\n[low_mfu]\nenabled = false\n[slow_pack]\nms = 4000.0\n"
        '[implausible_delta]\nseverity = "low"\n'
    )
    outcomes = apply_rules(Case(read_run(seed_run), read_rules(file)))
    found = {finding.rule: finding.severity for finding in outcomes.findings}
    assert found == {"rising_lod_delta": "medium", "implausible_delta": "low"}
    assert outcomes.skipped["low_mfu"].reason == f"disabled in {file}"


WRONG_RULES = {
    "[throughput_drop]\ndrop = 0.1": "did you mean throughput_dip",
    "[throughput_dip]\ndrops = 0.1": "did you mean drop",
    "[throughput_dip]\ndrop = 3": "between 0 and 1",
    "[throughput_dip]\ndrop = '3'": "between 0 and 1",
    "[slow_pack]\nms = -1": "from 0 on",
    "[slow_pack]\nenabled = 1": "true or false",
    "[slow_pack]\nseverity = 'grave'": "high, medium, low",
    "[tests]\nalpha = 1": "between 0 and 1",
    "ms = 3": "unknown rule ms",
    "[slow_pack": "expected TOML",
}


def test_wrong_rules_are_errors(tmp_path):
    for text, message in WRONG_RULES.items():
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            read_rules(tmp_path / "mine.toml")


def test_user_errors_exit_with_2(seed_run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    short = [write_run(tmp_path / name, {"train/loss": np.ones(3)}) for name in "ab"]
    for arguments, message in (
        (("review", tmp_path / "none"), "expected a folder"),
        (("review", tmp_path / "empty"), "expected metrics.jsonl"),
        (("review", seed_run, "--against", seed_run), "expected another run"),
        (("review", seed_run, "--rules", tmp_path / "none"), "cannot be read"),
        (("compare", seed_run), "two different runs"),
        (("compare", seed_run, seed_run), "two different runs"),
        (("compare", seed_run, tmp_path / "empty"), "expected metrics.jsonl"),
        (("compare", *short, "--out", tmp_path / "file" / "below"), "cannot be written"),
    ):
        result = mcframe(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in " ".join(result.output.replace("│", " ").split())


# ---- compare -------------------------------------------------------------------------------------
def test_runs_that_differ_in_the_seed_are_one_column_with_an_interval(tmp_path):
    runs = [write_run(tmp_path / f"seed-{k}", healthy(k), config={**CONFIG, "run.seed": str(k)}) for k in range(3)]
    runs.append(
        write_run(tmp_path / "other", healthy(9), config={**CONFIG, "run.gistnet": "@gistnet.mean", "gpt.depth": "4"})
    )
    labelled = named([read_run(run) for run in runs])
    assert groups(labelled) == {"seed-0": ["seed-0", "seed-1", "seed-2"], "other": ["other"]}
    result = mcframe("compare", *runs)
    assert result.exit_code == 0, result.output
    assert "seed-0 and seed-1 did not read the same tokens: run.seed: 0 against 1" in result.output
    assert "seed-0 and other read the same tokens" in result.output
    html, markdown = pages(tmp_path / "comparison", "comparison")
    check_is_self_contained(html)
    assert "| seed-0 (3 runs) | other |" in markdown
    rows = re.findall(r"^\| ([\w/.]+/[\w/.]+) \|", markdown, re.M)
    order = [name for name in rows if name in ("train/loss", "mc/wc_length", "mc/build_ms")]
    assert order == ["train/loss", "mc/wc_length", "mc/build_ms"]
    assert rows[-1] == "train/update_ratio/lensnet.read"
    late = [read_run(run).series["mc/lod_delta/1"].late(0.5).mean() for run in runs[:3]]
    row = next(line for line in markdown.splitlines() if line.startswith("| mc/lod_delta/1 "))
    mean, half = re.findall(r"([\d.]+) ± ([\d.]+) \(n = 3\)", row)[0]
    assert float(mean) == pytest.approx(np.mean(late), rel=1e-3)
    assert float(half) == pytest.approx(4.303 * np.std(late, ddof=1) / np.sqrt(3), rel=0.06)
    differing = markdown.split("## Configurations")[1].split("##")[0]
    assert set(re.findall(r"^\| (\w+\.\w+) ", differing, re.M)) == {"run.seed", "run.gistnet", "gpt.depth"}


def test_runs_with_one_seed_and_names_like_markup(tmp_path):
    runs = [write_run(tmp_path / name, {"train/loss": np.arange(5.0)}) for name in (r"$\frac$", "b")]
    assert mcframe("compare", *runs).exit_code == 0
    assert "have a seed twice" in pages(tmp_path / "comparison", "comparison")[1]


def test_runs_of_one_name_have_labels_with_their_folders(tmp_path):
    runs = [write_run(tmp_path / name / "seed-0", healthy(n=5)) for name in "ab"]
    assert list(named([read_run(run) for run in runs])) == ["a/seed-0", "b/seed-0"]
