"""For a paper: a CSV with every mean and half width, and a table of LaTeX with the terminal's figures."""

import csv
import re
import shutil
from dataclasses import replace

import commands
import pytest
from made_results import classification, regression
from rich.console import Console

from meta_exp.comparison import paper
from meta_exp.comparison.compare import table
from meta_exp.comparison.results import group

HOSTILE = r'[8]* 50% of_{x} & \input{/etc/passwd} ~^#$ <a>|"b"' + "\n\x1b[2J"
UNESCAPED = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^"}
UNESCAPED |= {
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textquotedblright{}": '"',
    r"$\pm$": "±",
}
UNESCAPED |= {"{[}": "[", "{*}": "*"}


def read(words):
    """A cell as LaTeX shows it; nothing but what is known may follow a backslash."""
    named = "|".join(map(re.escape, UNESCAPED))
    return re.sub(rf"{named}|\\([&%$#_{{}}])", lambda m: UNESCAPED.get(m[0]) or m[1], words)


def cells(text):
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0]
    rows = [row.removesuffix(r" \\") for row in body.splitlines() if row != r"\midrule"]
    return [[read(cell) for cell in re.split(r"(?<!\\) & ", row)] for row in rows]


@pytest.fixture
def configurations():
    return group([regression(seed, eta, best=True) for seed in (0, 1) for eta in (0.1, 0.5)])


def test_the_table_has_the_terminals_heads_and_figures(configurations):
    console = Console(width=1000)
    with console.capture() as captured:
        console.print(table(configurations))
    lines = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in captured.get().splitlines() if "│" in line or "┃" in line]
    rows = cells(paper.latex(configurations))
    shown = [[re.sub(r"^\$(.*)\$$", r"\1", cell).replace(r"\pm", "±") for cell in row] for row in rows]
    assert shown == lines
    assert [row[1] for row in rows] == ["predictive", "map", "bayes", "map", "bayes"]
    regret = str(configurations[0].estimate("map/regret"))
    assert rows[1][4] == f"${regret}$".replace("±", r"\pm")
    assert rows[1][-1] == "2 seeds"


def test_the_csv_has_means_and_half_widths_to_the_last_digit(configurations, tmp_path):
    paper.write(tmp_path, configurations, ["test_tasks=20"])
    with (tmp_path / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["algorithm.eta"], row["predictive"], row["over"]) for row in rows] == [
        ("0.1", "map", "2 seeds"),
        ("0.1", "bayes", "20 tasks"),
        ("0.5", "map", "2 seeds"),
        ("0.5", "bayes", "20 tasks"),
    ]
    for row, c in zip(rows[::2], configurations, strict=True):
        for score in ("nll", "mse", "regret", "coverage_80"):
            e = c.estimate(f"map/{score}")
            assert (float(row[score]), float(row[f"{score}_ci95"])) == (e.mean, e.half)
    assert rows[1]["regret"] == rows[1]["regret_ci95"] == ""
    assert (rows[0]["seeds"], rows[0]["tasks"], rows[0]["evaluated_with"]) == ("0 1", "20", "test_tasks=20")
    assert (tmp_path / "table.tex").read_text() == paper.latex(configurations, ["test_tasks=20"])


def test_a_score_that_is_pooled_over_one_run_has_no_interval():
    (head, row) = paper.summary(group([classification()]))
    assert dict(zip(head, row, strict=True))["ece"] == pytest.approx(0.1)
    assert dict(zip(head, row, strict=True))["ece_ci95"] == ""


def test_names_are_text_whatever_they_hold():
    """No command, no comment, no end of a row or cell comes from a name; a file that is read shows it as it is."""
    results = [regression(0, 0.1), regression(0, 0.5)]
    hostile = [replace(r, keys={**r.keys, "choices.algorithm": f"{HOSTILE}{i}"}) for i, r in enumerate(results)]
    text = paper.latex(group(hostile), [HOSTILE])
    assert text.splitlines()[0].startswith("% 20 test tasks")
    assert all(line.startswith("% ") for line in text.splitlines()[:2])
    rows = cells(text)
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[1][0] == HOSTILE.replace("\n", r"\n").replace("\x1b", r"\x1b") + "0"
    assert set(re.findall(r"\\[a-z]+", text.split("\\toprule")[1])) <= {
        *(r"\bottomrule", r"\midrule", r"\pm", r"\end"),
        *(name.rstrip("{}") for name in UNESCAPED if name.startswith("\\")),
    }


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here (Debian: texlive-latex-recommended)")
def test_latex_takes_it(tmp_path):
    """With booktabs and nothing else; a row may begin with what LaTeX takes for a length, as a list's bracket."""
    results = [regression(seed, eta, best=True) for eta in (0.1, 0.5) for seed in (0, 1)]
    hostile = [replace(r, keys={**r.keys, "choices.algorithm": f"{HOSTILE}{r.keys['algorithm.eta']}"}) for r in results]
    paper.write(tmp_path, group(hostile), [HOSTILE])
    start = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "paper.tex").write_text(start + r"\begin{table}\input{table}\end{table}\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = commands.finished(command, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 0
