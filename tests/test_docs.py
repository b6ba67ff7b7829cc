"""What README and docs name is there: files, and the tests that prove an equation."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page):
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", page.read_text()))
    files = [
        f"/{file.relative_to(REPO).as_posix()}" for room in ("meta_exp", "tests") for file in (REPO / room).rglob("*")
    ]
    files += [f"/{file.relative_to(REPO).as_posix()}" for file in [*REPO.glob("*.py"), *REPO.glob("benchmarks/*.py")]]
    assert not [name for name in named if not any(file.endswith(f"/{name}") for file in files)]


def expanded(words):
    """The names that a word with braces stands for: a{1,2}b is a1b and a2b."""
    head, brace, rest = words.partition("{")
    if not brace:
        return [words]
    inner, _, tail = rest.partition("}")
    return [name for part in inner.split(",") for name in expanded(f"{head}{part}{tail}")]


@pytest.mark.parametrize(
    "group", ["algorithm", "curvature", "dataset", "model", "likelihood", "optimizer", "lr_schedule", "experiment"]
)
def test_readme_names_every_option(group):
    rows = (REPO / "README.md").read_text().split("| group | options |")[1].split("\n\n")[0]
    named = {name for words in re.findall("`([^`]+)`", rows) for name in expanded(words)}
    options = {file.stem for file in (REPO / "conf" / group).glob("*.yaml")}
    assert options <= named, options - named


def test_tests_are_there():
    """In the table of theory.md each stands behind its file, or before the files that have it."""
    table = (REPO / "docs" / "theory.md").read_text().split("## Where each equation is")[1]
    tests = {file.relative_to(REPO / "tests").as_posix(): file.read_text() for file in (REPO / "tests").rglob("*.py")}
    pairs = 0
    for row in [line for line in table.splitlines() if line.startswith("| ")]:
        for part in row.split("|")[3].split(";"):
            files, names = re.findall(r"`([\w/]+\.py)`", part), re.findall(r"`(test_\w+)`", part)
            for file in files:
                texts = [text for path, text in tests.items() if f"/{path}".endswith(f"/{file}")]
                assert texts, file
                for name in names:
                    pairs += 1
                    assert any(f"def {name}(" in text for text in texts), f"{file}: {name}"
    assert pairs > 60
