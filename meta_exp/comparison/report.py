"""The report of a comparison: one file that holds everything, opens offline, and escapes whatever a run is called.

Its policy lets no script run but its own, by a nonce, and nothing load from elsewhere. Without scripts, and in print,
pictures stand for the charts; it is light or dark as the browser asks.
"""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from meta_exp.comparison.charts import Chart, Curve
from meta_exp.comparison.plots import FEW
from meta_exp.comparison.results import (
    ABSENT,
    Configuration,
    Difference,
    Estimate,
    as_number,
    compared,
    differing_keys,
    heading,
    looked_at,
    title,
)
from meta_exp.comparison.swept import MOST_TICKS
from meta_exp.files import write_whole
from meta_exp.runs.protocol import mixed
from meta_exp.terminal import plain

COLORS = ("#1f4e8c", "#e08214", "#111111", "#b2384b", "#6a9f58", "#8e7cc3", "#8c8c8c", "#c9a227")
LIGHTER = ("#7db3f2", "#f2a154", "#f0f0f0", "#f08497", "#9bd08d", "#bcaef0", "#b8b8b8", "#e6c75a")  # on a dark page
IDEAL = "#9a9a9a"
DASHES = ("solid", "dash", "dashdot", "dot")
LINE, BELOW = 19, 60  # pixels of a chart's height: a line of its legend, and what stands below its axes before it
NAME = 64  # characters of a name in a line
BAND = 0.15  # opacity; less where many lie on each other


def write(
    file: Path,
    configurations: Sequence[Configuration],
    differences: Sequence[Difference],
    charts: Mapping[Path, Chart],
    pictures: Mapping[str, Path],
    unfinished: Mapping[Path, str],
    overrides: Sequence[str],
    versions: Mapping[str, Any],
) -> None:
    """Write the report, whole or not at all; ``charts`` by their PNG files, ``pictures`` are PNG files by title.

    Raises:
        OSError: a picture cannot be read, or the file not be written.
    """
    environment = Environment(
        loader=PackageLoader("meta_exp.comparison", "."),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    runs = [run for configuration in configurations for run in configuration.runs]
    scores = _shown(configurations)
    html = environment.get_template("report.html.j2").render(
        nonce=secrets.token_urlsafe(16),
        plotly=get_plotlyjs(),
        tasks=runs[0].summary["test/tasks"],
        mixed=mixed([run.protocol for run in runs]),
        overrides=overrides,
        scores=scores,
        title=title,
        labels=[heading(key) for key in configurations[0].label],
        rows=list(chain.from_iterable(_rows(configuration) for configuration in configurations)),
        differences=differences,
        compared=compared(differences),
        looked_at=looked_at(differences, scores),
        number=_number,
        figures={chart.name: json.loads(figure(chart).to_json()) for chart in charts.values()},
        lighter=dict(zip(COLORS, LIGHTER, strict=True)),
        chart_titles={chart.name: chart.title for chart in charts.values()},
        stills={chart.name: _encoded(file) for file, chart in charts.items()},
        pictures={title: _encoded(file) for title, file in pictures.items()},
        runs=runs,
        differing=_differing(configurations),
        unfinished=unfinished,
        versions=versions,
    )
    write_whole(file, html)


def figure(chart: Chart) -> go.Figure:
    """Return the interactive form of a chart; a click in its legend hides a curve with its band."""
    rows = 2 if chart.bars else 1
    heights = [0.72, 0.28] if chart.bars else None
    out = make_subplots(rows=rows, cols=1, row_heights=heights, vertical_spacing=0.2)
    for curve in chart.curves:
        for trace in _traces(curve, chart):
            out.add_trace(trace, row=1, col=1)
    if chart.diagonal:
        look = {"mode": "lines", "line": {"color": IDEAL, "width": 1}, "hoverinfo": "skip"}
        out.add_scatter(x=[0, 1], y=[0, 1], name=_text(chart.diagonal), **look, row=1, col=1)
    for bars in chart.bars:
        color = COLORS[bars.group % len(COLORS)]
        # plotly reads a little HTML in names, so they are escaped a second time
        bar = go.Bar(x=bars.x, y=bars.y, name=_text(bars.name), marker_color=color, showlegend=False)
        out.add_trace(bar, row=2, col=1)
    if chart.level is not None:
        out.add_hline(chart.level, line={"color": IDEAL, "width": 1}, row=2, col=1)
    out.update_xaxes(title_text=_text(chart.x_label), **_ticks(chart), row=1, col=1)
    out.update_yaxes(title_text=_text(chart.y_label), row=1, col=1)
    if chart.bars:
        out.update_xaxes(title_text=_text(chart.bars_x_label), matches="x", row=2, col=1)
        out.update_yaxes(title_text=_text(chart.bars_label), row=2, col=1)
    lines = sum(trace.name.count("<br>") + 1 for trace in out.data if trace.showlegend is not False)
    margin = {"l": 60, "r": 10, "t": 10, "b": BELOW + LINE * lines}
    height = margin["t"] + (400 if chart.bars else 280) + margin["b"]
    legend = {"yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "tracegroupgap": 0, "maxheight": height}
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "modebar_bgcolor": "rgba(0,0,0,0)"}
    out.update_layout(template="simple_white", legend=legend, margin=margin, height=height, **clear)
    out.update_layout(hoverlabel={"namelength": -1})
    return out


def _ticks(chart: Chart) -> dict[str, Any]:
    axis = chart.x_axis
    if axis.log:
        places, words = zip(*axis.ticks, strict=True)
        return {"type": "log", "tickvals": places, "ticktext": words, "minor": {"ticks": ""}}
    values = [x for curve in chart.curves for x in curve.x]
    few = axis.whole and values and max(values) - min(values) <= MOST_TICKS
    return {"tickformat": "d" if axis.whole else "", **({"dtick": 1} if few else {})}


def _traces(curve: Curve, chart: Chart) -> list[go.Scatter]:
    color = COLORS[curve.group % len(COLORS)]
    dash = "dash" if curve.dashed else "solid" if chart.steps else DASHES[curve.group % len(DASHES)]
    name = "<br>".join(map(_text, wrap(curve.name, NAME)))
    common = {"legendgroup": name, "name": name}
    line = {"color": color, "dash": dash, "shape": "hvh" if chart.steps else "linear"}
    mode = "lines" if chart.steps or len(curve.x) > 40 else "lines+markers" if curve.joined else "markers"
    said: dict[str, Any] = {"hovertext": _said(curve, chart), "hoverinfo": "text+name"}
    if curve.low and curve.high and not curve.joined:
        said["error_y"] = {"array": [high - y for y, high in zip(curve.y, curve.high, strict=True)], "thickness": 1}
    said["marker"] = {"symbol": "circle-open" if curve.dashed else "circle"}
    traces = [go.Scatter(x=curve.x, y=curve.y, mode=mode, line=line, **said, **common)]
    if curve.low and curve.high and curve.joined:
        opacity = BAND * min(1.0, FEW / len(chart.curves))
        x, y = [*curve.x, *reversed(curve.x)], [*curve.high, *reversed(curve.low)]
        band = {"fill": "toself", "fillcolor": color, "opacity": opacity, "line": {"width": 0}, "mode": "lines"}
        traces.append(go.Scatter(x=x, y=y, showlegend=False, hoverinfo="skip", **band, **common))
    return traces


def _said(curve: Curve, chart: Chart) -> list[str]:
    """Return what is shown beside each point: its place and value, and the half width or the range of its band."""
    words, label = dict(chart.x_axis.ticks), _text(chart.x_label)
    said = [f"{label} {words.get(x) or f'{x:.4g}'}: {y:.4g}" for x, y in zip(curve.x, curve.y, strict=True)]
    if not (curve.low and curve.high):
        return said
    bands = zip(curve.y, curve.low, curve.high, strict=True)
    ends = [f" ({low:.4g} to {high:.4g})" if chart.ranges else f" ± {high - y:.2g}" for y, low, high in bands]
    return [point + end for point, end in zip(said, ends, strict=True)]


def _differing(configurations: Sequence[Configuration]) -> list[list[Any]]:
    """Return a table of the keys in which the configurations differ, its heads first; the longer side runs down."""
    keys = differing_keys([c.runs[0].keys for c in configurations])
    seeds = [", ".join(str(run.seed) for run in c.runs) for c in configurations]
    if not keys and len(seeds[0].split(", ")) == 1:
        return []
    keys = [key for key in keys if key != "seed"]
    columns = [["configuration", "seeds", *keys]]
    columns += [
        [c.name, words, *(c.runs[0].keys.get(key, ABSENT) for key in keys)]
        for c, words in zip(configurations, seeds, strict=True)
    ]
    return [list(row) for row in zip(*columns, strict=True)] if len(keys) > len(configurations) else columns


def _shown(configurations: Sequence[Configuration]) -> list[str]:
    names = dict.fromkeys(name for c in configurations for name in c.scores)
    return [s for s in names if any(c.estimate(f"{kind}/{s}") for c in configurations for kind in c.predictives)]


def _rows(configuration: Configuration) -> list[tuple[Configuration, str, dict[str, Estimate | None]]]:
    return [
        (configuration, kind, {score: configuration.estimate(f"{kind}/{score}") for score in configuration.scores})
        for kind in configuration.rows
    ]


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _number(value: object) -> str:
    """What a column is sorted by: the value where it is a finite number, else nothing."""
    return "" if as_number(value) is None else repr(value)


def _printable(value: object) -> object:
    """Return what the page shows of a value: no control character, by which a terminal or a reader could be led."""
    return value if isinstance(value, Markup) else plain(value)


def _text(words: str) -> str:
    return plain(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
