"""What the pictures of a comparison show, as numbers: drawn once for print and once for a browser.

A band is the 95 % interval of a configuration's mean, but for learning curves, where it is the range over seeds. Every
curve is in order of x.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from meta_exp.comparison.results import ENSEMBLE, Configuration, describe, heading, title
from meta_exp.comparison.swept import Axis, axis, families, swept_keys
from meta_exp.likelihoods.predictive import COVERAGE_LEVELS
from meta_exp.prediction import KINDS
from meta_exp.scoring.yardstick import BAYES
from meta_exp.training.panels import served

LONGEST = 60  # of a name in a file's


class Curve(NamedTuple):
    """Points with an optional band [low, high], ``joined`` by a line where what lies between them has a meaning.

    ``group`` gives the colour, ``dashed`` tells the second of a pair.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    group: int = 0
    dashed: bool = False
    joined: bool = True


class Chart(NamedTuple):
    """Curves over one pair of axes, and perhaps bars of counts below them; ``name`` is that of the file.

    ``diagonal`` says what the line y = x is, where there is one, and ``level`` is the height of even bars. Bands are
    intervals, or else ``ranges``.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    bars: Sequence[Curve] = ()
    bars_label: str = ""
    bars_x_label: str = ""
    level: float | None = None
    diagonal: str = ""
    steps: bool = False
    x_axis: Axis = Axis()
    ranges: bool = False


def charts(configurations: Sequence[Configuration]) -> list[Chart]:
    """Return the charts that the results have the numbers for."""
    looks = _looks(configurations)
    found = [*_inner_steps(configurations), *_calibration(configurations), *_conformal(configurations)]
    found = [_in_pairs(chart, looks) for chart in found]
    learning = [_in_pairs(chart, looks) for chart in _learning(configurations)]
    return [*found, *_entropy(configurations), *learning, *_sweeps(configurations)]


def file_name(words: str) -> str:
    """Return ``words`` as a part of a file's name, whatever they hold."""
    return re.sub(r"[^A-Za-z0-9.-]+|\.\.+", "_", words).strip("._-")[:LONGEST]


def _looks(configurations: Sequence[Configuration]) -> list[tuple[int, bool]]:
    """Return the colour of each configuration, and whether it is the second of it: an ensemble, beside its members."""
    colours: dict[str, int] = {}
    found = []
    for c in configurations:
        members = describe({key: value for key, value in c.label.items() if key != ENSEMBLE})
        second = members in colours
        found.append((colours.setdefault(members, len(colours)), second))
    return found


def _in_pairs(chart: Chart, looks: Sequence[tuple[int, bool]]) -> Chart:
    """Return a chart whose curves and bars, grouped by the place of a configuration, have its look."""

    def looking(curve: Curve) -> Curve:
        colour, second = looks[curve.group]
        return curve._replace(group=colour, dashed=curve.dashed or second)

    return chart._replace(curves=[*map(looking, chart.curves)], bars=[*map(looking, chart.bars)])


def _exact(configurations: Sequence[Configuration]) -> dict[int, str]:
    """Return the place of one configuration for each exact predictor, and in words what tells it from the others.

    Configurations that were tested on the same tasks have the same.
    """
    places: dict[float, list[int]] = {}
    for i, c in enumerate(configurations):
        if nll := c.estimate(f"{BAYES}/nll"):
            places.setdefault(nll.mean, []).append(i)
    found = {}
    for first, *others in places.values():
        labels = [configurations[i].label for i in others]
        shared = {k: v for k, v in configurations[first].label.items() if all(label[k] == v for label in labels)}
        words = describe({k: v for k, v in shared.items() if k != "choices.algorithm"})
        found[first] = f"{words}: Bayes-optimal" if words and len(places) > 1 else "Bayes-optimal"
    return found


def _inner_steps(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    exact = _exact(configurations)
    for metric in _metrics(configurations):
        curves = []
        for i, c in enumerate(configurations):
            scored = (re.fullmatch(rf"test/map/{metric}_step_(\d+)", name) for name in c.runs[0].summary)
            steps = sorted(int(match[1]) for match in scored if match)
            found = {k: e for k in steps if (e := c.estimate(f"map/{metric}_step_{k}"))}
            means, halves = [e.mean for e in found.values()], [e.half for e in found.values()]
            if found:
                curves.append(_banded(c.name, [float(k) for k in found], means, halves, i))
        last = max((curve.x[-1] for curve in curves), default=0.0)
        for i, words in exact.items() if curves else ():
            if best := configurations[i].estimate(f"{BAYES}/{metric}"):
                curves.append(Curve(words, [0.0, last], [best.mean] * 2, group=i, dashed=True))
        name = title(metric)
        axes = f"{name} by inner steps", "inner steps", f"test {name}"
        if last:  # else nobody takes a step
            yield Chart(f"steps_{metric}", *axes, curves, x_axis=Axis(whole=True))


def _calibration(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    exact = _exact(configurations)
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
            below = "query points", "confidence: how many points have it"
            yield Chart(
                name,
                title,
                "confidence",
                "accuracy",
                curves,
                bars,
                *below,
                diagonal="calibrated: accuracy = confidence",
            )
        curves, bars = [], []
        for i, c in enumerate(configurations):
            if (pit := _pooled(c, f"{kind}/pit")) is None or (kind == BAYES and i not in exact):
                continue
            name = exact[i] if kind == BAYES else c.name
            found = [e for q in COVERAGE_LEVELS if (e := c.estimate(f"{kind}/coverage_{q}"))]
            levels = [q / 100 for q in COVERAGE_LEVELS]
            curves.append(_banded(name, levels, [e.mean for e in found], [e.half for e in found], i))
            bars.append(Curve(name, _centres(len(pit)), (pit / pit.sum()).tolist(), group=i))
        if curves:
            title, name = f"Coverage, {kind}: outputs inside the central interval", f"coverage_{kind}"
            # a hump in the middle is a predictive too wide, high ends one too narrow, a slope one off to a side
            below = "share of outputs", "F(y), the predictive's probability of less than y: even where calibrated"
            even = 1 / len(bars[0].x)
            yield Chart(
                name,
                title,
                "nominal coverage",
                "observed",
                curves,
                bars,
                *below,
                even,
                "calibrated: observed = nominal",
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
            yield Chart(
                f"conformal_{kind}", title, "nominal coverage", "observed", curves, diagonal="what they promise"
            )


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
        found = [(run.curve, f"validation/{kind}/nll") for run in c.runs if (kind := served(run.curve, "validation"))]
        by_step = [dict(zip(curve["step"], curve[nll], strict=True)) for curve, nll in found]
        steps = sorted(set.intersection(*(set(nlls) for nlls in by_step))) if by_step else []
        if steps:
            values = [[nlls[step] for nlls in by_step] for step in steps]
            y = [sum(v) / len(v) for v in values]
            low, high = [min(v) for v in values], [max(v) for v in values]
            curves.append(Curve(c.name, steps, y, low, high, group=i))
    if curves:
        words = "Learning curves; band: range over seeds", "step", "validation NLL, as trained"
        yield Chart("learning", *words, curves, x_axis=Axis(whole=True), ranges=True)


def _sweeps(configurations: Sequence[Configuration]) -> Iterator[Chart]:
    """Scores against each number that a sweep varies, a curve for each setting of the rest and each predictive."""
    keys = swept_keys(configurations)
    headings = [heading(key) for key in keys]
    for key in keys:
        found = list(families(configurations, key, keys))
        members = [c for family in found for _, c in family.members]
        x_axis = axis([value for family in found for value, _ in family.members])
        symbol = key if headings.count(heading(key)) > 1 else heading(key)
        scores = [*_metrics(members), "nll", *(["regret"] if any(BAYES in c.rows for c in members) else [])]
        for score in scores if found else []:
            curves = []
            for i, family in enumerate(found):
                name = describe(family.label)
                for kind in family.members[0][1].predictives:
                    points = [(x_axis.place(x), c.estimate(f"{kind}/{score}")) for x, c in family.members]
                    known = [(x, e) for x, e in points if e]
                    x, y, halves = [x for x, _ in known], [e.mean for _, e in known], [e.half for _, e in known]
                    curve = _banded(
                        f"{name}, {kind}".removeprefix(", "), x, y, halves, i * len(KINDS) + KINDS.index(kind)
                    )
                    curves.append(curve._replace(joined=family.joined))
            words = f"{title(score)} by {symbol}", symbol, f"test {title(score)}"
            yield Chart(f"sweep_{file_name(symbol)}_{score}", *words, curves, x_axis=x_axis)


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
