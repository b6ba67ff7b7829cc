"""Which numbers a sweep varies, which configurations differ in one of them alone, and the axis that shows its values.

Of numbers that move together, as where one is set from the other, one counts. A grid has families, whose members differ
in one number alone; a search has none, and each of its trials stands for itself.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil, exp, log
from statistics import fmean, pstdev
from typing import NamedTuple

from meta_exp.comparison.results import ABSENT, Configuration, as_number
from meta_exp.config.keys import Keys, is_identity

MOST_TICKS = 12
FAR = 10.0  # of two values alone: a ratio that asks for a logarithm


class Family(NamedTuple):
    """Configurations by a number, in its order; ``joined`` where only that varies, ``label`` tells it from others."""

    label: Keys
    members: list[tuple[float, Configuration]]
    joined: bool


class Axis(NamedTuple):
    """An axis, logarithmic or linear; of a logarithmic one where ``zero`` stands, and ``ticks`` (place, words)."""

    log: bool = False
    zero: float | None = None
    ticks: Sequence[tuple[float, str]] = ()
    whole: bool = False

    def place(self, value: float) -> float:
        """Return where a value stands: itself, but for a zero among logarithms."""
        return self.zero if self.zero is not None and value == 0 else value


def swept_keys(configurations: Sequence[Configuration]) -> list[str]:
    """Return the numeric keys that vary where the choices are the same; of those that move together, one."""
    configs = [c.runs[0].keys for c in configurations]
    commands = " ".join(run.command for c in configurations for run in c.runs)
    names = dict.fromkeys(key for keys in configs for key in keys if is_identity(key))
    varied = [key for key in names if _varies(key, configs)]
    kept: list[str] = []
    # what the command names comes first: what follows from it is left out
    for key in sorted(varied, key=lambda name: (f"{name}=" not in commands, name)):
        if not any(_follows(key, other, configs) for other in kept):
            kept = [*(other for other in kept if not _follows(other, key, configs)), key]
    return sorted(kept)


def families(configurations: Sequence[Configuration], key: str, swept: Sequence[str]) -> Iterator[Family]:
    """Yield the families that differ in ``key`` alone among those ``swept``; of a search, those of the same choices."""
    configs = [c.runs[0].keys for c in configurations]
    others = dict.fromkeys([*(k for c in configurations for k in c.label), *swept])
    numbers = [k for k in others if k not in swept and _varies(k, configs)]  # that move with another
    others = dict.fromkeys(k for k in others if k != key and k not in numbers)
    found = _grouped(configurations, key, list(others))
    joined = any(len({value for value, _ in members}) > 1 for members in found.values())
    if not joined:
        found = _grouped(configurations, key, [k for k in others if k.startswith("choices.")])
    found = {rest: members for rest, members in found.items() if len({value for value, _ in members}) > 1}
    telling = {k for k in others if len({dict(rest).get(k) for rest in found}) > 1}
    for rest, members in found.items():
        label = {k: value for k, value in rest if k in telling}
        yield Family(label, sorted(members, key=lambda member: member[0]), joined)


def axis(values: Sequence[float]) -> Axis:
    """Return the axis on which the ``values`` are spread more evenly, a logarithmic one with its zero a step aside.

    Of two values that are not 0 the ratio decides.
    """
    shown = sorted(set(values))
    positive = [value for value in shown if value > 0]
    if not positive or shown[0] < 0 or len(positive) < 2:
        return Axis(whole=_whole(shown))
    ratios = [log(high / low) for low, high in pairwise(positive)]
    gaps = [high - low for low, high in pairwise(shown)]
    wanted = exp(ratios[0]) >= FAR if len(ratios) == 1 else _unevenness(ratios) < _unevenness(gaps)
    if not wanted:
        return Axis(whole=_whole(shown))
    zero = positive[0] / exp(fmean(ratios)) if shown[0] == 0 else None
    found = Axis(log=True, zero=zero)
    ticks = [(found.place(value), f"{value:.4g}") for value in shown[:: ceil(len(shown) / MOST_TICKS)]]
    return found._replace(ticks=ticks)


def _grouped(
    configurations: Sequence[Configuration], key: str, others: Sequence[str]
) -> dict[tuple[tuple[str, str], ...], list[tuple[float, Configuration]]]:
    """Return the values of ``key`` with their configurations, by what these are in the ``others``."""
    found: dict[tuple[tuple[str, str], ...], list[tuple[float, Configuration]]] = {}
    for c in configurations:
        keys = c.runs[0].keys
        if (value := as_number(keys.get(key))) is not None:
            rest = tuple((k, str(keys.get(k, ABSENT))) for k in others)
            found.setdefault(rest, []).append((value, c))
    return found


def _varies(key: str, configs: Sequence[Keys]) -> bool:
    """Whether a number has two values where the choices are the same."""
    values: dict[tuple[str, ...], set[float]] = {}
    for keys in configs:
        if not isinstance(keys.get(key), bool) and (value := as_number(keys.get(key))) is not None:
            choices = tuple(f"{k}={keys[k]}" for k in sorted(keys) if k.startswith("choices."))
            values.setdefault(choices, set()).add(value)
    return any(len(found) > 1 for found in values.values())


def _follows(key: str, other: str, configs: Sequence[Keys]) -> bool:
    """Whether ``key`` is a function of ``other`` that rises or falls throughout, as what is set from a number does."""
    pairs = {(as_number(keys.get(other)), as_number(keys.get(key))) for keys in configs if key in keys}
    known = sorted((x, y) for x, y in pairs if x is not None and y is not None)
    if len(known) < len(pairs) or len({x for x, _ in known}) < len(known):
        return False
    steps = [b - a for (_, a), (_, b) in pairwise(known)]
    return all(step >= 0 for step in steps) or all(step <= 0 for step in steps)


def _unevenness(gaps: Sequence[float]) -> float:
    return pstdev(gaps) / fmean(gaps)


def _whole(values: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in values)
