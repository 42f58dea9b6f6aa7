"""What `mcframe review` and `mcframe compare` write and say, through the command."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.review.comparison import groups, named
from mcframe.review.finding import Plot
from mcframe.review.plots import draw
from mcframe.review.record import read_run
from mcframe.review.tables import with_error
from tests.support.synthetic_runs import CONFIG, healthy, like_the_seed, write_run

VOID = {"meta", "link", "br", "img", "use", "path"}


@pytest.fixture
def mcframe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


class Page(HTMLParser):
    """Collects what a page refers to, its text, and whether its tags fit each other."""

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


def check_needs_nothing_else(text):
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


@pytest.fixture
def seed_run(tmp_path):
    return write_run(tmp_path / "run10", like_the_seed(), provenance={"command": ["a", "<b>&"], "revision": "abc"})


def test_the_review_of_the_founding_run(mcframe, seed_run):
    result = mcframe("review", seed_run)
    assert result.exit_code == 0, result.output
    assert "mc/variant_pack_ms" in result.output
    html, markdown = ((seed_run / "review" / f"review.{end}").read_text("utf-8") for end in ("html", "md"))
    page = check_needs_nothing_else(html)
    assert page.tags.count("article") == 5
    assert page.tags.count("svg") >= 9
    text = "".join(page.text)
    headings = re.findall(r"^## (.+)$", markdown, re.M)
    assert headings == [
        "Summary", "Training throughput", "Controller metrics: LOD layout", "Controller metrics: LensNet",
        "Controller metrics: variant quality", "Weights by module", "Rules: findings", "Next steps", "Provenance",
    ]  # fmt: skip
    for said in (
        *headings,
        "0.41 is 41 %",
        "most likely timer: mc/variant_pack_ms",
        "<b>&",
    ):
        assert said in text
    for picture in re.findall(r"!\[.*?\]\((.+?)\)", markdown):
        assert (seed_run / "review" / picture).read_bytes().startswith(b"\x89PNG")
    assert markdown.count("### ") == 5


def test_text_in_plots_follows_the_page(mcframe, seed_run):
    mcframe("review", seed_run)
    html = (seed_run / "review" / "review.html").read_text("utf-8")
    assert "currentColor" in html
    assert "#010203" not in html
    assert not re.search(r"fill: #000000|stroke: #000000", html)


def test_the_same_run_gives_the_same_page(mcframe, seed_run, tmp_path):
    pages = []
    for name in ("a", "b"):
        assert mcframe("review", seed_run, "--out", tmp_path / name).exit_code == 0
        pages.append((tmp_path / name / "review.html").read_text("utf-8"))
    assert pages[0] == pages[1]


def test_a_healthy_run_and_its_reference(mcframe, tmp_path):
    run, reference = write_run(tmp_path / "run", healthy()), write_run(tmp_path / "reference", healthy(1))
    result = mcframe("review", run, "--against", reference, "--from", 5, "--to", 160)
    assert result.exit_code == 0, result.output
    assert "No rule has a finding." in result.output
    markdown = (run / "review" / "review.md").read_text("utf-8")
    assert "Steps 5 to 160" in markdown
    assert "The two runs read the same tokens" in markdown
    assert "that of reference" in markdown


def test_metrics_are_told_with_what_they_mean_and_whether_they_change(mcframe, seed_run):
    mcframe("review", seed_run)
    markdown = (seed_run / "review" / "review.md").read_text("utf-8")
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in markdown.splitlines() if line.startswith("| mc/")}
    _, unit, _, _, mean, trend, means = rows["mc/lod_delta/1"]
    assert unit == "nats"
    late = read_run(seed_run).series["mc/lod_delta/1"].late(0.5)
    assert float(mean.split(" ± ")[0]) == pytest.approx(late.mean(), abs=0.01)
    assert trend.startswith("↗ +0.9")
    assert "at most context.horizon after a span" in means
    assert rows["mc/build_ms"][5] == "→"


def test_working_contexts_are_coloured_by_level(mcframe, tmp_path):
    run = write_run(tmp_path / "run", healthy())
    writer = SummaryWriter(str(run / "tensorboard"))
    writer.add_text("working_contexts", "    focused ·1·22|··  9 of 16 entries, 2 gists", 12288)
    writer.close()
    assert mcframe("review", run).exit_code == 0
    html = (run / "review" / "review.html").read_text("utf-8")
    strip = (
        'focused <span class="raw">·</span><span class="lod1">1</span><span class="raw">·</span>'
        '<span class="lod2">22</span><span class="cursor">|</span><span class="raw">··</span>  9 of 16 entries, 2 gists'
    )
    assert strip in html
    assert "focused ·1·22|··  9 of 16" in (run / "review" / "review.md").read_text("utf-8")


def test_nothing_in_a_run_becomes_part_of_the_page(mcframe, tmp_path):
    run = write_run(tmp_path / "run", healthy())
    writer = SummaryWriter(str(run / "tensorboard"))
    writer.add_text("working_contexts", "    <script>alert(1)</script> & ·1|·  9 of 16", 12288)
    writer.close()
    assert mcframe("review", run).exit_code == 0
    page = check_needs_nothing_else((run / "review" / "review.html").read_text("utf-8"))
    assert "<script>alert(1)</script> & ·1|·  9 of 16" in "".join(page.text)
    assert "lod1" in (run / "review" / "review.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("value", "half", "said"),
    [(3745.3, 192.6, "3,750 ± 190"), (0.00507, 0.000493, "0.00507 ± 0.00049"), (1.5, 0.2, "1.50 ± 0.20"),
     (0.0041, 9.4e-9, "0.0041 ± 9.4e-09"), (12.0, 3.4, "12.0 ± 3.4"), (123456.0, 1234.0, "123,500 ± 1,200")],
)  # fmt: skip
def test_a_mean_has_as_many_places_as_its_error(value, half, said):
    assert with_error(value, half) == said


@pytest.mark.parametrize("lines", [1, 2, 5, 12])
def test_a_run_that_has_only_begun_is_reviewed(mcframe, tmp_path, lines):
    run = write_run(tmp_path / "run", healthy(n=lines), config=None, finished=False)
    result = mcframe("review", run)
    assert result.exit_code == 0, result.output
    assert "too few independent" in (run / "review" / "review.md").read_text("utf-8")


def test_a_plain_run_is_reviewed(mcframe, tmp_path):
    run = write_run(tmp_path / "run", {k: v for k, v in healthy().items() if not k.startswith("mc/")})
    assert mcframe("review", run).exit_code == 0
    assert "no variants were trained" in (run / "review" / "review.md").read_text("utf-8")


def test_rules_of_ones_own(mcframe, seed_run, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[throughput_dip]\ndrop = 0.5\n[low_mfu]\nenabled = false\n[slow_pack]\nseverity = "low"\nms = 4000.0\n'
    )
    result = mcframe("review", seed_run, "--rules", file)
    assert result.exit_code == 0
    assert "Throughput fell" not in result.output
    assert "MFU" not in result.output
    assert "Packing" not in result.output
    assert "implausible" in result.output
    markdown = (seed_run / "review" / "review.md").read_text("utf-8")
    assert "disabled in" in markdown
    assert "mine.toml" in markdown


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


@pytest.mark.parametrize("text", WRONG_RULES)
def test_rules_that_are_wrong_are_told(mcframe, seed_run, tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    result = mcframe("review", seed_run, "--rules", tmp_path / "mine.toml")
    assert result.exit_code == 2
    assert WRONG_RULES[text] in " ".join(result.output.replace("│", " ").split())


def test_what_cannot_be_done_ends_with_2(mcframe, seed_run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (("review", tmp_path / "none"), "expected a folder"),
        (("review", tmp_path / "empty"), "expected metrics.jsonl"),
        (("review", seed_run, "--against", seed_run), "expected another run"),
        (("review", seed_run, "--against", tmp_path / "none"), "expected a folder"),
        (("review", seed_run, "--from", 10, "--to", 5), "--from before --to"),
        (("review", seed_run, "--from", 5000), "no metric between"),
        (("review", seed_run, "--rules", tmp_path / "none"), "cannot be read"),
        (("review", seed_run, "--out", tmp_path / "file" / "below"), "cannot be written"),
        (("compare", seed_run), "two different runs"),
        (("compare", seed_run, seed_run), "two different runs"),
        (("compare", seed_run, tmp_path / "empty"), "expected metrics.jsonl"),
    ):
        result = mcframe(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert said in " ".join(result.output.replace("│", " ").split())


# ---- compare -------------------------------------------------------------------------------------
def test_runs_that_differ_in_the_seed_are_one_row_with_an_interval(mcframe, tmp_path):
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
    markdown = (tmp_path / "comparison" / "comparison.md").read_text("utf-8")
    check_needs_nothing_else((tmp_path / "comparison" / "comparison.html").read_text("utf-8"))
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


def test_a_seed_twice_is_told(mcframe, tmp_path):
    runs = [write_run(tmp_path / name, healthy(k)) for k, name in enumerate("ab")]
    assert mcframe("compare", *runs).exit_code == 0
    assert "have a seed twice" in (tmp_path / "comparison" / "comparison.md").read_text("utf-8")


def test_runs_may_be_called_anything(tmp_path):
    runs = {name: read_run(write_run(tmp_path / name, healthy(n=5))) for name in (r"$\frac$", "b")}
    assert draw(Plot("loss", "Loss", ("train/loss",)), runs) is not None


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name / "seed-0", healthy(n=5)) for name in "ab"]
    assert list(named([read_run(run) for run in runs])) == ["a/seed-0", "b/seed-0"]
