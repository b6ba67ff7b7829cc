"""The charts of a comparison, drawn for print."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from meta_exp.comparison.charts import Chart, Curve
from meta_exp.comparison.swept import Axis
from meta_exp.runs.pictures import STYLE, save
from meta_exp.terminal import plain

DASHES = ("-", "--", "-.", ":")  # with the markers they tell curves apart without colour
MARKERS = "os^Dv<>PX"
FEW = 6  # curves, whose names have a line each and whose bands are seen
NAME = 72  # characters of a name in a line
BAND = 0.12  # opacity; less where many lie on each other
LEGEND = 0.6  # inches of a figure's height that are for it


def draw_charts(charts: Sequence[Chart], folder: Path) -> dict[Path, Chart]:
    """Draw each chart into ``folder`` as PNG and SVG, named for it, and return them by their PNG files."""
    with matplotlib.style.context(STYLE):
        return {save(draw_chart(chart), folder / chart.name)[0]: chart for chart in charts}


def draw_chart(chart: Chart) -> Figure:
    """Draw curves with their bands, and the bars below them where there are some; legible without colour."""
    rows, height = (2, 5.2) if chart.bars else (1, 3.4)
    ratios = {"height_ratios": [3, 1]} if chart.bars else None
    figure = Figure(figsize=(5.6, height), layout="constrained")
    ax, *below = figure.subplots(rows, 1, squeeze=False, gridspec_kw=ratios)[:, 0]
    for curve in chart.curves:
        _draw_line(ax, curve, chart.steps, BAND * min(1.0, FEW / len(chart.curves)))
    if chart.diagonal:
        ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0, label=chart.diagonal)
    _set_x_axis(ax, chart.x_axis)
    ax.set(title=plain(chart.title), xlabel=plain(chart.x_label), ylabel=chart.y_label)
    if chart.curves:
        _add_legend(figure, ax)
    for j, bars in enumerate(chart.bars):
        width = 0.8 / len(bars.x) / len(chart.bars)
        x = np.asarray(bars.x) + (j - (len(chart.bars) - 1) / 2) * width
        below[0].bar(x, bars.y, width, color=f"C{bars.group}", lw=0)
        below[0].set(xlabel=chart.bars_x_label, ylabel=chart.bars_label, xlim=ax.get_xlim())
    if chart.level is not None:
        below[0].axhline(chart.level, color="0.6", lw=0.8, zorder=3)
    return figure


def _add_legend(figure: Figure, ax: Axes) -> None:
    """Put the legend below, in two columns where many curves have short names, and make room for it."""
    handles, names = ax.get_legend_handles_labels()
    names = [fill(name, NAME) for name in names]
    legend = figure.legend(handles, names, loc="outside lower center", ncol=1 + (len(names) > FEW))
    if legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        legend = figure.legend(handles, names, loc="outside lower center")
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + max(height - LEGEND, 0))


def _set_x_axis(ax: Axes, x_axis: Axis) -> None:
    if x_axis.log:
        ax.set_xscale("log")
        ax.set_xticks(*zip(*x_axis.ticks, strict=True))
        ax.minorticks_off()
    elif x_axis.whole:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_line(ax: Axes, curve: Curve, steps: bool, opacity: float) -> None:
    dash = "--" if curve.dashed else "-" if steps else DASHES[curve.group % len(DASHES)]
    marker = "" if steps or len(curve.x) > 40 else MARKERS[curve.group % len(MARKERS)]
    color, drawstyle = f"C{curve.group}", "steps-mid" if steps else "default"
    if not curve.joined:
        ends = None
        if curve.low and curve.high:
            ends = np.subtract(curve.y, curve.low), np.subtract(curve.high, curve.y)
        ax.errorbar(curve.x, curve.y, ends, fmt=marker or "o", color=color, label=plain(curve.name), elinewidth=0.8)
        return
    (line,) = ax.plot(curve.x, curve.y, dash, marker=marker, color=color, label=plain(curve.name), drawstyle=drawstyle)
    line.set_markerfacecolor("white" if curve.dashed else color)
    if curve.low and curve.high:
        ax.fill_between(curve.x, curve.low, curve.high, color=color, alpha=opacity, lw=0)
