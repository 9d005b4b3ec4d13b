"""Links between pages lead to a file and a heading that exist; all commands are listed."""

import re
from pathlib import Path

import pytest

from coder.cli import _OWN, OTHERS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_there_are_pages_with_links() -> None:
    assert len(PAGES) > 10
    assert "where-a-thing-lives" in anchors(ROOT / "docs/design.md")


def test_all_commands_are_listed():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/commands.md").read_text(), re.M)
    listed = [name for row in rows for name in re.findall("`([a-z-]+)`", row)]
    assert sorted(listed) == sorted([*_OWN, *OTHERS])
