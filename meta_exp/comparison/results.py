r"""Results of several runs: grouped into configurations, averaged with intervals, and compared in pairs.

Runs whose configs differ in nothing but the seed are one configuration. Its score is the mean over its runs; the
interval is Student's t over seeds where there are two or more, else over the tasks of the one run:

    over n seeds or tasks:  t_{0.975, n-1} sd / sqrt(n)

LLAMA is compared with MAML by seed and task: both have adapted to the same test tasks, so that the differences
d_st vary less than the scores; d_s, their mean over tasks, is averaged over seeds as above.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from meta_exp.config.keys import Keys, is_identity, within
from meta_exp.hyper import Hyper
from meta_exp.likelihoods.predictive import COVERAGE_LEVELS
from meta_exp.prediction import KINDS
from meta_exp.runs import names
from meta_exp.runs.test_set import half_width, mean_and_half_width, summarize
from meta_exp.scoring.metrics import defined
from meta_exp.scoring.task import Scores
from meta_exp.scoring.yardstick import BAYES
from meta_exp.terminal import plus_minus

TITLES = {  # of the scores of a predictive, in the order of a table
    "accuracy": "accuracy",
    "mse": "MSE",
    "nll": "NLL per point",
    "regret": "regret",
    "ece": "ECE",
    "brier": "Brier",
    "crps": "CRPS",
    **{f"coverage_{q}": f"coverage {q} %" for q in COVERAGE_LEVELS},
    "conformal_coverage_90": "conformal coverage 90 %",
    "conformal_width_90": "conformal width 90 %",
    "conformal_size_90": "conformal set size 90 %",
    "auroc": "AUROC foreign",
}
SHOWN = ("accuracy", "mse", "nll", "regret", "ece", "brier", "crps", "coverage_95", "auroc")  # of these a table's width
MISSES = 0.05  # of 95 % intervals
ENOUGH_SEEDS = 5  # before a difference is marked
ABSENT = "-"  # a key that a configuration does not have
ENSEMBLE = "ensemble"  # a key that results of several runs together have beside those of a config
ALGORITHM = ("choices.algorithm", "choices.curvature", "algorithm._target_", "curvature", "predictives")


class Estimate(NamedTuple):
    """A mean, the half width of its 95 % interval (NaN for none), and what the interval is over."""

    mean: float
    half: float
    over: str

    def __str__(self) -> str:
        """Mean and half width, with the digits that matter."""
        return plus_minus(self.mean, self.half)


@dataclass(frozen=True)
class Result:
    """One run, evaluated. ``command`` made it, ``curve`` is its learning curve by column, ``made_by`` versions.

    ``protocol`` is that of the evaluation. An ensemble has the keys that its members share, their folders as one name,
    and their seeds in one word.
    """

    folder: Path
    keys: Keys
    scores: Scores
    metric: str
    command: str
    curve: dict[str, list[float]]
    made_by: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Hyper] = field(default_factory=dict)  # the values that predictives were calibrated to

    @property
    def seed(self) -> int | str:
        """The seed of weights and training tasks; of an ensemble those of its members."""
        seed: int | str = self.keys["seed"]
        return seed

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Mean and half width of each score over test tasks."""
        return summarize(self.scores)


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in the seed alone; ``label`` holds the keys that tell this configuration from the others."""

    label: Keys
    runs: Sequence[Result]

    @property
    def name(self) -> str:
        """The label in words; of a configuration that is alone, its algorithm and data set."""
        keys = self.runs[0].keys
        alone = " on ".join(str(keys[key]) for key in ("choices.algorithm", "choices.dataset") if key in keys)
        return describe(self.label) or alone

    @property
    def scores(self) -> list[str]:
        """The scores that a predictive may have, in the order of a table, those of one's own last."""
        return [*TITLES, *own_scores(self.runs[0].keys)]

    @property
    def predictives(self) -> list[str]:
        """The predictives that were scored."""
        return [kind for kind in KINDS if f"{kind}/nll" in self.runs[0].scores.each]

    @property
    def rows(self) -> list[str]:
        """The predictives, and the exact predictor of the family where it has one."""
        return [*self.predictives, *([BAYES] if f"{BAYES}/nll" in self.runs[0].scores.each else [])]

    def estimate(self, score: str) -> Estimate | None:
        """Return the mean of a score, such as ``map/nll``, with its interval, or None where there is none.

        That of the exact predictor knows no seed, so that its interval is over tasks.
        """
        summaries = [run.summary for run in self.runs[: 1 if score.startswith(f"{BAYES}/") else None]]
        if any(f"test/{score}" not in summary for summary in summaries):
            return None
        means = [summary[f"test/{score}"] for summary in summaries]
        return _estimate(means, summaries[0].get(f"test/{score}_ci95", nan), summaries[0]["test/tasks"])


class Difference(NamedTuple):
    """An algorithm minus MAML: their configurations and predictives, the difference of each score that both have."""

    of: Configuration
    to: Configuration
    predictives: tuple[str, str]
    scores: dict[str, Estimate]
    seeds: int

    def stands_out(self, score: str) -> bool:
        """Whether the interval over five seeds or more excludes 0; of fewer it says too little, two may agree."""
        estimate = self.scores[score]
        return self.seeds >= ENOUGH_SEEDS and abs(estimate.mean) > estimate.half


def group(results: Sequence[Result]) -> list[Configuration]:
    """Group runs into configurations, in order of their labels; of two runs with one seed, the later counts."""
    groups: dict[tuple[str, ...], dict[int | str, Result]] = {}
    for identity, result in zip(_identities([result.keys for result in results]), results, strict=True):
        groups.setdefault(identity, {})[result.seed] = result
    firsts = [next(iter(runs.values())).keys for runs in groups.values()]
    telling = telling_keys(firsts)
    if any(ENSEMBLE in keys for keys in firsts) and ENSEMBLE not in telling:  # it is what its row is
        telling.append(ENSEMBLE)
    found = [
        Configuration(
            {key: keys.get(key, ABSENT) for key in telling}, [runs[seed] for seed in sorted(runs, key=_order)]
        )
        for keys, runs in zip(firsts, groups.values(), strict=True)
    ]
    return sorted(found, key=lambda configuration: [_order(value) for value in configuration.label.values()])


def doubles(configs: Sequence[Keys]) -> dict[int, int]:
    """Return the place of each config that a later one repeats, seed included, with the place of the last such."""
    last: dict[tuple[object, ...], int] = {}
    identities = [(*identity, keys["seed"]) for identity, keys in zip(_identities(configs), configs, strict=True)]
    for place, identity in enumerate(identities):
        last[identity] = place
    return {place: last[identity] for place, identity in enumerate(identities) if last[identity] != place}


def _identities(configs: Sequence[Keys]) -> list[tuple[str, ...]]:
    """Return for each config what tells its configuration from those of the others."""
    names = list(dict.fromkeys(key for keys in configs for key in keys if is_identity(key)))
    return [tuple(repr(keys.get(name)) for name in names) for keys in configs]


def telling_keys(configs: Sequence[Keys]) -> list[str]:
    """Return keys that tell the configs apart, choices first: each splits what those before it leave together."""
    names = [key for keys in configs for key in keys if is_identity(key)]
    names = sorted(dict.fromkeys(names), key=lambda key: not key.startswith("choices."))
    told: list[str] = []
    for name in names:
        parts = [len({tuple(repr(keys.get(k)) for k in ks) for keys in configs}) for ks in (told, [*told, name])]
        if parts[1] > parts[0]:
            told.append(name)
    return told


def shared_keys(configs: Sequence[Keys]) -> dict[str, Any]:
    """Return the keys of an ensemble of these configs: what all have alike, all algorithms and all seeds."""
    first, size = configs[0], len(configs)
    alike = {key: value for key, value in first.items() if all(repr(c.get(key)) == repr(value) for c in configs)}
    algorithms = dict.fromkeys(str(config["choices.algorithm"]) for config in configs)
    seeds = " ".join(str(config["seed"]) for config in configs)
    return alike | {"choices.algorithm": " + ".join(algorithms), "seed": seeds, ENSEMBLE: f"of {size}"}


def differing_keys(configs: Sequence[Keys]) -> list[str]:
    """Return every key in which the configs differ, the seed included."""
    names = dict.fromkeys(key for keys in configs for key in keys)
    shown = [name for name in names if name == "seed" or is_identity(name)]
    return [name for name in shown if len({repr(keys.get(name)) for keys in configs}) > 1]


def differences(configurations: Sequence[Configuration]) -> Iterator[Difference]:
    """Compare each configuration with the MAML that differs in algorithm and curvature alone, by seed and task.

    A predictive that MAML lacks, for want of a curvature, is compared with MAML's ``map``.
    """
    mamls = [c for c in configurations if _algorithm(c) == "maml"]
    for of in configurations:
        for to in mamls:
            pairs = [(a, b) for a in of.runs for b in to.runs if a.seed == b.seed]
            if _algorithm(of) == "maml" or not pairs or not _same_but_algorithm(pairs[0][0].keys, pairs[0][1].keys):
                continue
            for kind in of.predictives:
                other = kind if kind in to.predictives else "map"
                scores = {name: _paired(pairs, f"{kind}/{name}", f"{other}/{name}") for name in of.scores}
                yield Difference(of, to, (kind, other), {name: d for name, d in scores.items() if d}, len(pairs))


def compared(pairs: Sequence[Difference]) -> str:
    """Return which algorithms the differences are of."""
    of, to = (dict.fromkeys(map(_algorithm, side)) for side in ([p.of for p in pairs], [p.to for p in pairs]))
    return f"{', '.join(of)} minus {', '.join(to)}"


def looked_at(pairs: Sequence[Difference], scores: Sequence[str]) -> str:
    """Say how many differences are shown, how many intervals would exclude 0 by chance, and which are marked."""
    count = sum(len(pair.scores.keys() & set(scores)) for pair in pairs)
    chance = f"{count} differences are looked at: were there none, about {count * MISSES:.2g} intervals would exclude 0"
    if all(pair.seeds < ENOUGH_SEEDS for pair in pairs):
        return f"{chance}. None is bold: that takes {ENOUGH_SEEDS} seeds."
    return f"{chance}. Bold: so do these, over {ENOUGH_SEEDS} seeds or more."


def own_scores(keys: Keys) -> list[str]:
    """Return the names of the scores of one's own that a config adds."""
    return [key.split(".")[1] for key in keys if key.startswith("scores.") and key.endswith("._target_")]


def shown_scores(configurations: Sequence[Configuration]) -> list[str]:
    """Return the scores that a table shows: those that any of the predictives has, those of one's own last."""
    names = dict.fromkeys([*SHOWN, *(name for c in configurations for name in own_scores(c.runs[0].keys))])
    return [name for name in names if any(c.estimate(f"{c.predictives[0]}/{name}") for c in configurations)]


def title(score: str) -> str:
    """Return what a score is called in tables and charts."""
    return TITLES.get(score, score)


def describe(label: Keys) -> str:
    """Return a label in words, without the keys that a configuration lacks."""
    words = {key: "" if key == "choices.algorithm" else f"{heading(key)} " for key in label}
    return ", ".join(f"{words[key]}{value}" for key, value in label.items() if value != ABSENT)


def heading(key: str) -> str:
    """Return a key as a heading, short and as people call it."""
    return names.short(key)


def _paired(pairs: list[tuple[Result, Result]], score: str, other: str) -> Estimate | None:
    a, b = pairs[0]
    if score in a.scores.each and other in b.scores.each:
        found = [_apart(x, y, score, other) for x, y in pairs]
        if not all(map(len, found)):
            return None
        each = [mean_and_half_width(values) for values in found]
        return _estimate([mean for mean, _ in each], each[0][1], len(a.scores.each[score]))
    if f"test/{score}" in a.summary and f"test/{other}" in b.summary:  # pooled: no difference by task
        return _estimate([x.summary[f"test/{score}"] - y.summary[f"test/{other}"] for x, y in pairs], nan, 0)
    return None


def _apart(of: Result, to: Result, score: str, other: str) -> Tensor:
    """Return the differences of a score [T] on the tasks that have one."""
    kind, to_kind = (name.rpartition("/")[0] for name in (score, other))
    pairs = [(score, other), (f"{kind}/nll", f"{to_kind}/nll")]
    return defined(score, {a: of.scores.each[a] - to.scores.each[b] for a, b in pairs})


def _estimate(means: list[float], half: float, tasks: int) -> Estimate:
    n = len(means)
    if n == 1:
        return Estimate(means[0], half, f"{tasks} tasks" if half == half else "")
    with np.errstate(invalid="ignore"):  # where a seed's score is infinite the interval is NaN, which a table shows
        deviation = float(np.std(means, ddof=1))
    return Estimate(fmean(means), half_width(deviation, n), f"{n} seeds")


def _same_but_algorithm(a: Keys, b: Keys) -> bool:
    shared = [key for key in a if key in b and is_identity(key) and not within(key, ALGORITHM)]
    return (ENSEMBLE in a) == (ENSEMBLE in b) and all(a[key] == b[key] for key in shared)


def as_number(value: object) -> float | None:
    """Return a key's value as a finite number, or None where it is none."""
    try:
        number = float(value) if isinstance(value, float | int) else nan
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _order(value: object) -> tuple[bool, float, str]:
    number = as_number(value)
    return number is not None, number or 0.0, str(value) if number is None else ""


def _algorithm(configuration: Configuration) -> str:
    return str(configuration.runs[0].keys["choices.algorithm"])
