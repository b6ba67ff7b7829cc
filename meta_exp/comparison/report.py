"""The report of a comparison: one file that holds everything, opens offline, and escapes whatever a run is called.

Its policy lets no script run but its own, by a nonce, and nothing load from elsewhere.
"""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from meta_exp.comparison.charts import Chart, Curve
from meta_exp.comparison.results import Configuration, Difference, Estimate, as_number, differing_keys, heading, title
from meta_exp.files import write_whole

COLORS = ("#1f4e8c", "#e08214", "#111111", "#b2384b", "#6a9f58", "#8e7cc3", "#8c8c8c", "#c9a227")
DASHES = ("solid", "dash", "dashdot", "dot")


def write(
    file: Path,
    configurations: Sequence[Configuration],
    differences: Sequence[Difference],
    charts: Sequence[Chart],
    pictures: Mapping[str, Path],
    unfinished: Mapping[Path, str],
    overrides: Sequence[str],
    versions: Mapping[str, Any],
) -> None:
    """Write the report, whole or not at all; ``pictures`` are PNG files by title.

    Raises:
        OSError: a picture cannot be read, or the file not be written.
    """
    environment = Environment(
        loader=PackageLoader("meta_exp.comparison", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    runs = [run for configuration in configurations for run in configuration.runs]
    keys = differing_keys([run.keys for run in runs])
    html = environment.get_template("report.html.j2").render(
        nonce=secrets.token_urlsafe(16),
        plotly=get_plotlyjs(),
        tasks=runs[0].summary["test/tasks"],
        overrides=overrides,
        scores=_shown(configurations),
        title=title,
        labels=[heading(key) for key in configurations[0].label],
        rows=list(chain.from_iterable(_rows(configuration) for configuration in configurations)),
        differences=differences,
        excludes_zero=_excludes_zero,
        number=_number,
        figures={chart.name: json.loads(figure(chart).to_json()) for chart in charts},
        chart_titles={chart.name: chart.title for chart in charts},
        pictures={title: base64.b64encode(path.read_bytes()).decode() for title, path in pictures.items()},
        runs=runs,
        keys=keys,
        unfinished=unfinished,
        versions=versions,
    )
    write_whole(file, html)


def figure(chart: Chart) -> go.Figure:
    """Return the interactive form of a chart; a click in its legend hides a curve with its band."""
    rows = 2 if chart.bars else 1
    heights = [0.7, 0.3] if chart.bars else None
    out = make_subplots(rows=rows, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.05)
    if chart.diagonal:
        line = {"color": "#aaaaaa", "width": 1}
        out.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, showlegend=False, hoverinfo="skip", row=1, col=1)
    for curve in chart.curves:
        for trace in _traces(curve, chart.steps):
            out.add_trace(trace, row=1, col=1)
    for bars in chart.bars:
        color = COLORS[bars.group % len(COLORS)]
        # plotly reads a little HTML in names, so they are escaped a second time
        bar = go.Bar(x=bars.x, y=bars.y, name=_text(bars.name), marker_color=color, showlegend=False)
        out.add_trace(bar, row=2, col=1)
    out.update_xaxes(title_text=_text(chart.x_label), row=rows, col=1)
    out.update_xaxes(type="log" if chart.x_axis.log else "linear")
    out.update_yaxes(title_text=_text(chart.y_label), row=1, col=1)
    if chart.bars:
        out.update_yaxes(title_text=_text(chart.bars_label), row=2, col=1)
    legend = {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0}
    margin = {"l": 60, "r": 10, "t": 10, "b": 40}
    out.update_layout(template="simple_white", legend=legend, margin=margin, height=480 if chart.bars else 400)
    return out


def _traces(curve: Curve, steps: bool) -> list[go.Scatter]:
    color = COLORS[curve.group % len(COLORS)]
    dash = "dash" if curve.dashed else "solid" if steps else DASHES[curve.group % len(DASHES)]
    common = {"legendgroup": _text(curve.name), "name": _text(curve.name)}
    line = {"color": color, "dash": dash, "shape": "hvh" if steps else "linear"}
    mode = "lines" if steps or len(curve.x) > 40 else "lines+markers"
    traces = [go.Scatter(x=curve.x, y=curve.y, mode=mode, line=line, **common)]
    if curve.low and curve.high:
        x, y = [*curve.x, *reversed(curve.x)], [*curve.high, *reversed(curve.low)]
        band = {"fill": "toself", "fillcolor": color, "opacity": 0.15, "line": {"width": 0}, "mode": "lines"}
        traces.append(go.Scatter(x=x, y=y, showlegend=False, hoverinfo="skip", **band, **common))
    return traces


def _shown(configurations: Sequence[Configuration]) -> list[str]:
    names = dict.fromkeys(name for c in configurations for name in c.scores)
    return [s for s in names if any(c.estimate(f"{kind}/{s}") for c in configurations for kind in c.predictives)]


def _rows(configuration: Configuration) -> list[tuple[Configuration, str, dict[str, Estimate | None]]]:
    return [
        (configuration, kind, {score: configuration.estimate(f"{kind}/{score}") for score in configuration.scores})
        for kind in configuration.rows
    ]


def _excludes_zero(estimate: Estimate) -> bool:
    return abs(estimate.mean) > estimate.half


def _number(value: object) -> str:
    """What a column is sorted by: the value where it is a finite number, else nothing."""
    return "" if as_number(value) is None else repr(value)


def _text(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
