"""What the pictures of a comparison show, as numbers: drawn once for print and once for a browser.

A band is the 95 % interval of a configuration's mean, but for learning curves, where it is the range over seeds.
"""

from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from meta_exp.comparison.results import Configuration, as_number, describe, title
from meta_exp.likelihoods.predictive import COVERAGE_LEVELS
from meta_exp.prediction import KINDS
from meta_exp.scoring.yardstick import BAYES

SWEPT = {"algorithm.eta": "eta", "curvature.prior_precision": "tau"}


class Curve(NamedTuple):
    """Points with an optional band [low, high]; ``group`` gives the colour, ``dashed`` tells the second of a pair."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    group: int = 0
    dashed: bool = False


class Chart(NamedTuple):
    """Curves over one pair of axes, and perhaps bars of counts below them; ``name`` is that of the file."""

    name: str
    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    bars: Sequence[Curve] = ()
    bars_label: str = ""
    diagonal: bool = False
    steps: bool = False
    log_x: bool = False


def charts(configurations: Sequence[Configuration]) -> list[Chart]:
    """Return the charts that the results have the numbers for."""
    found = [*_inner_steps(configurations), *_calibration(configurations), *_conformal(configurations)]
    return [*found, *_entropy(configurations), *_learning(configurations), *_sweeps(configurations)]


def _inner_steps(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    for metric in _metrics(configurations):
        curves = []
        for i, c in enumerate(configurations):
            found = list(takewhile(bool, (c.estimate(f"map/{metric}_step_{k}") for k in count())))
            means, halves = [e.mean for e in found if e], [e.half for e in found if e]
            if found:
                curves.append(_banded(c.name, [float(k) for k in range(len(found))], means, halves, i))
            if found and (best := c.estimate(f"{BAYES}/{metric}")):
                ends = [0.0, float(len(found) - 1)]
                curves.append(Curve(f"{c.name}: Bayes-optimal", ends, [best.mean] * 2, group=i, dashed=True))
        name = title(metric)
        yield Chart(f"steps_{metric}", f"{name} by inner steps", "inner steps", f"test {name}", curves)


def _calibration(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    for kind in (*KINDS, BAYES):
        curves, bars = [], []
        for i, c in enumerate(configurations):
            if (sums := _pooled(c, f"{kind}/reliability")) is None:
                continue
            points, confidence, right = sums
            full = points > 0
            x, y = (confidence / points)[full].tolist(), (right / points)[full].tolist()
            ece = c.estimate(f"{kind}/ece")
            curves.append(Curve(f"{c.name} (ECE {ece.mean:.3f})" if ece else c.name, x, y, group=i))
            bars.append(Curve(c.name, _centres(len(points)), points.tolist(), group=i))
        if curves:
            title, name = f"Reliability, {kind}: query points of all test tasks", f"reliability_{kind}"
            yield Chart(name, title, "confidence", "accuracy", curves, bars, "query points", diagonal=True)
        curves, bars = [], []
        for i, c in enumerate(configurations):
            if (pit := _pooled(c, f"{kind}/pit")) is None:
                continue
            found = [e for q in COVERAGE_LEVELS if (e := c.estimate(f"{kind}/coverage_{q}"))]
            levels = [q / 100 for q in COVERAGE_LEVELS]
            curves.append(_banded(c.name, levels, [e.mean for e in found], [e.half for e in found], i))
            bars.append(Curve(c.name, _centres(len(pit)), (pit / pit.sum()).tolist(), group=i))
        if curves:
            title, name = f"Coverage, {kind}: outputs inside the central interval", f"coverage_{kind}"
            label = "share"
            yield Chart(
                name, title, "nominal coverage; bars: outputs by F(y)", "observed", curves, bars, label, diagonal=True
            )


def _conformal(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    for kind in KINDS:
        curves = []
        for i, c in enumerate(configurations):
            found = [e for q in COVERAGE_LEVELS if (e := c.estimate(f"{kind}/conformal_coverage_{q}"))]
            if found:
                levels = [q / 100 for q in COVERAGE_LEVELS]
                curves.append(_banded(c.name, levels, [e.mean for e in found], [e.half for e in found], i))
        if curves:
            title = f"Coverage of conformal intervals and sets, {kind}"
            yield Chart(f"conformal_{kind}", title, "nominal coverage", "observed", curves, diagonal=True)


def _entropy(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    for kind in KINDS:
        curves = []
        for i, c in enumerate(configurations):
            if (counts := _pooled(c, f"{kind}/entropy")) is None:
                continue
            shares = counts / counts.sum(1, keepdim=True)
            for share, words, dashed in zip(shares, ("of the task", "foreign"), (False, True), strict=True):
                x = _centres(len(share))
                curves.append(Curve(f"{c.name}: {words}", x, share.tolist(), group=i, dashed=dashed))
        if curves:
            title = f"Entropy, {kind}: query points of the task and of other classes"
            yield Chart(f"entropy_{kind}", title, "entropy / log C", "share of points", curves, steps=True)


def _learning(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    curves = []
    for i, c in enumerate(configurations):
        found = [run.curve for run in c.runs if "validation/loss" in run.curve]
        by_step = [dict(zip(curve["step"], curve["validation/loss"], strict=True)) for curve in found]
        steps = sorted(set.intersection(*(set(losses) for losses in by_step))) if by_step else []
        if steps:
            values = [[losses[step] for losses in by_step] for step in steps]
            y = [sum(v) / len(v) for v in values]
            low, high = [min(v) for v in values], [max(v) for v in values]
            curves.append(Curve(c.name, steps, y, low, high, group=i))
    if curves:
        yield Chart("learning", "Learning curves; band: range over seeds", "step", "validation loss", curves)


def _sweeps(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    """Scores against eta or tau, a curve for each setting of the other keys and each predictive."""
    for key, symbol in SWEPT.items():
        swept = [c for c in configurations if as_number(c.label.get(key)) is not None]
        families: dict[tuple[tuple[str, str], ...], list[Configuration]] = {}
        for c in swept:
            families.setdefault(tuple((k, str(v)) for k, v in c.label.items() if k != key), []).append(c)
        families = {rest: members for rest, members in families.items() if len(members) > 1}
        scores = [*_metrics(swept), "nll", *(["regret"] if any(BAYES in c.rows for c in swept) else [])]
        for score in scores if families else []:
            curves = []
            for i, (rest, members) in enumerate(families.items()):
                members.sort(key=lambda c: float(c.label[key]))
                name = describe(dict(rest))
                for kind in members[0].predictives:
                    found = [(float(c.label[key]), e) for c in members if (e := c.estimate(f"{kind}/{score}"))]
                    x, y = [value for value, _ in found], [e.mean for _, e in found]
                    halves = [e.half for _, e in found]
                    group = i * len(KINDS) + KINDS.index(kind)
                    curves.append(_banded(f"{name}, {kind}".removeprefix(", "), x, y, halves, group))
            log_x = all(value > 0 for curve in curves for value in curve.x)
            name = title(score)
            yield Chart(f"sweep_{symbol}_{score}", f"{name} by {symbol}", symbol, f"test {name}", curves, log_x=log_x)


def _metrics(configurations: Sequence[Configuration]) -> list[str]:
    return list(dict.fromkeys(run.metric for c in configurations for run in c.runs))


def _pooled(configuration: Configuration, name: str) -> Tensor | None:
    sums = [run.scores.pooled.get(name) for run in configuration.runs]
    return None if any(s is None for s in sums) else torch.stack([s for s in sums if s is not None]).sum(0)


def _banded(name: str, x: list[float], y: list[float], halves: list[float], group: int) -> Curve:
    if any(half != half for half in halves):
        return Curve(name, x, y, group=group)
    low, high = zip(*((m - h, m + h) for m, h in zip(y, halves, strict=True)), strict=True)
    return Curve(name, x, y, list(low), list(high), group)


def _centres(bins: int) -> list[float]:
    return [(i + 0.5) / bins for i in range(bins)]
