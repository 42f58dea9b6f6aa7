"""Pages of the site that are not files of docs/: the README, and the reference, generated from the code."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mcframe.metrics.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
API = ("hookspecs", "interfaces", "losses", "context", "modeling", "runtime", "training")
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files of the repository to which pages link."""
    pages = {to: (ROOT / source).read_text("utf-8") for source, to in COPIED.items()}
    pages["reference/metrics.md"] = metrics()
    pages["reference/mcframe.md"] = "# mcframe\n\n::: mcframe\n    options: {show_submodules: false}\n"
    pages |= {f"reference/mcframe.{name}.md": f"# mcframe.{name}\n\n::: mcframe.{name}\n" for name in API}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in _LINK.findall(page.read_text("utf-8")):
            file = (page.parent / target).resolve()
            if _is_source(file) and (to := _site_path(file)) not in files.src_uris:
                files.append(File.generated(config, to, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point relative links at where their targets are on the site. Links to folders become plain text."""
    source = {to: name for name, to in COPIED.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder, up = (ROOT / source).parent, "../" * page.file.src_uri.count("/")

    def site_link(match: re.Match[str]) -> str:
        file = (folder / match[1]).resolve()
        inside = file.is_file() and ROOT in file.parents and "://" not in match[1]
        return up + _site_path(file) if inside else match[1]

    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s#]+)\)", markdown):
        if (folder / target).is_dir():
            markdown = markdown.replace(f"[{text}]({target})", text)
    return _LINK.sub(site_link, markdown)


def _site_path(file: Path) -> str:
    """Return the path on the site of a file of the repository."""
    name = file.relative_to(ROOT).as_posix()
    return COPIED.get(name, name.removeprefix("docs/") if name.startswith("docs/") else f"source/{name}")


def _is_source(file: Path) -> bool:
    """Return whether a file is of the repository, but neither in docs/ nor a page."""
    inside = file.is_file() and ROOT in file.parents
    return inside and ROOT / "docs" not in file.parents and file.name not in COPIED


def metrics() -> str:
    """Return the page of all metrics, from the catalogue."""
    rows = [f"| `{m.name}` | {m.unit} | {m.better} | {m.meaning} |" for m in CATALOGUE]
    return "\n".join(
        ["# All metrics", "", "| name | unit | better | meaning |", "| --- | --- | --- | --- |", *rows, ""]
    )
