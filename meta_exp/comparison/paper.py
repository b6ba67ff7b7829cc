r"""The comparison for a paper: ``summary.csv``, every score of it, and ``table.tex``, the terminal's table in LaTeX.

Both have a row for each predictive of each configuration. The CSV holds means and half widths to the last digit, with
what they are over, seeds or tasks; the table has the terminal's figures, for booktabs:

    \usepackage{booktabs}
    \begin{table} \input{table} \caption{...} \end{table}
"""

import io
from collections.abc import Sequence
from pathlib import Path

from meta_exp.comparison.results import Configuration, heading, shown_scores, title
from meta_exp.files import write_rows, write_whole
from meta_exp.terminal import plain

SPECIAL = {
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",  # the straight one is in no font that LaTeX begins with
    "±": r"$\pm$",
    **{letter: f"{{{letter}}}" for letter in "[*"},  # a row before or a rule would take them for its own
}
SIGNS = {"±": r"\pm", "nan": r"\mathrm{nan}", "inf": r"\infty"}  # in a figure


def write(folder: Path, configurations: Sequence[Configuration], settings: Sequence[str] = ()) -> None:
    """Write ``summary.csv`` and ``table.tex``, of runs evaluated with ``settings``; raises OSError where it cannot."""
    stream = io.StringIO()
    write_rows(stream, summary(configurations, settings))
    write_whole(folder / "summary.csv", stream.getvalue())
    write_whole(folder / "table.tex", latex(configurations, settings))


def summary(configurations: Sequence[Configuration], settings: Sequence[str] = ()) -> list[list[object]]:
    """Return the rows of the CSV, its head first: what tells a configuration, then each score and its half width.

    ``over`` is what the intervals are over; a score that is pooled over one run's tasks has none.
    """
    keys = list(configurations[0].label)
    found = dict.fromkeys(name for c in configurations for name in c.scores)
    scores = [s for s in found if any(c.estimate(f"{kind}/{s}") for c in configurations for kind in c.rows)]
    head = ["configuration", *keys, "predictive", "evaluated_with", "seeds", "tasks", "over"]
    rows: list[list[object]] = [[*head, *(name for score in scores for name in (score, f"{score}_ci95"))]]
    for c in configurations:
        seeds = " ".join(str(run.seed) for run in c.runs)
        for kind in c.rows:
            nll = c.estimate(f"{kind}/nll")
            row = [c.name, *(c.label[key] for key in keys), kind, " ".join(settings), seeds]
            row += [c.runs[0].summary["test/tasks"], nll.over if nll else ""]
            for score in scores:
                e = c.estimate(f"{kind}/{score}")
                row += [e.mean if e else "", e.half if e and e.half == e.half else ""]
            rows.append(row)
    return rows


def latex(configurations: Sequence[Configuration], settings: Sequence[str] = ()) -> str:
    """Return a tabular for booktabs with the figures of the terminal's table; names are escaped."""
    scores, keys = shown_scores(configurations), list(configurations[0].label)
    heads = [*map(heading, keys), "predictive", *map(title, scores), "± over"]
    tasks = configurations[0].runs[0].summary["test/tasks"]
    words = f"{tasks} test tasks; mean ± half width of the 95 % interval"
    words += f"; evaluated with {' '.join(settings)}" if settings else ""
    lines = [f"% {plain(words)}", "% made by evaluate.py, which makes it anew; needs \\usepackage{booktabs}"]
    lines += [rf"\begin{{tabular}}{{{'l' * (len(keys) + 1)}{'r' * len(scores)}l}}", r"\toprule", _row(heads)]
    for c in configurations:
        lines.append(r"\midrule")
        for place, kind in enumerate(c.rows):
            labels = ["" if place else value for value in c.label.values()]
            nll = c.estimate(f"{kind}/nll")
            figures = [_figure(str(c.estimate(f"{kind}/{score}") or "")) for score in scores]
            lines.append(_row([*labels, kind], figures, [nll.over if nll else ""]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escaped(words: object) -> str:
    """Return ``words`` in one line of LaTeX's text."""
    return "".join(SPECIAL.get(letter, letter) for letter in plain(words))


def _figure(words: str) -> str:
    """Return a figure, as the terminal has it, in LaTeX's mathematics, so that its minus is one."""
    for sign, command in SIGNS.items():
        words = words.replace(sign, command)
    return f"${words}$" if words else ""


def _row(words: Sequence[object], figures: Sequence[str] = (), last: Sequence[object] = ()) -> str:
    return " & ".join([*map(escaped, words), *figures, *map(escaped, last)]) + r" \\"
