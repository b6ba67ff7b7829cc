"""What a key that nobody knows may have been meant for."""

import pytest

from meta_exp.config.keys import meant

KNOWN = ("seed", "algorithm.inner_lr", "algorithm.inner_steps", "optimizer.lr", "a.b.mode", "c.mode")
MEANT = {
    "sed": "did you mean seed?",
    "algorithm.iner_lr": "did you mean algorithm.inner_lr?",
    "inner_lr": "did you mean algorithm.inner_lr?",  # at another place
    "optimizer.inner_lr": "did you mean algorithm.inner_lr?",
    "algorithm.lr": "did you mean algorithm.inner_lr or optimizer.lr?",
    "lr": "did you mean optimizer.lr?",
    "steps": "did you mean algorithm.inner_steps?",
    "algorithm.steps": "did you mean algorithm.inner_steps?",
    "algoritm": "did you mean algorithm?",
    "a.c": "there are b",
    "mode": "did you mean a.b.mode or c.mode?",
    "x": "there are seed, algorithm, optimizer, a, c",
    "optimizer.momentum": "there are lr",
    "x.y": "",
    "": "there are seed, algorithm, optimizer, a, c",
}


@pytest.mark.parametrize("key", MEANT)
def test_what_was_meant(key: str) -> None:
    assert meant(key, KNOWN) == MEANT[key]


def test_nothing_is_known() -> None:
    assert meant("seed", ()) == ""
