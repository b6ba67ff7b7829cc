"""A task family of one's own is tried before anything trains: what does not fit is named."""

from dataclasses import dataclass

import pytest
import torch

from meta_exp.tasks import Sinusoid
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.fitness import refuse_unfit


@dataclass(frozen=True)
class Fit:
    """Numbers or classes, with a fault where one is asked for."""

    classes: bool = False
    fault: str = ""

    meta_batch = 3
    input_shape = (2,)
    outputs = 2

    def draw(self, split, rng, tasks):
        if self.fault == "bug":
            return {}["x"]
        if self.fault == "data":
            raise FileNotFoundError("no such table")
        if self.fault == "pair":
            return torch.zeros(2), torch.zeros(2)
        x = torch.from_numpy(rng.normal(size=(tasks, 4, 2))).to(
            torch.float64 if self.fault == "double" else torch.float
        )
        y = torch.from_numpy(rng.integers(2, size=(tasks, 4))) if self.classes else x.clone()
        if self.fault == "random":
            x = x + torch.rand(())
        x = {"shape": x[..., :1], "tasks": x[:1], "integers": x.long()}.get(self.fault, x)
        y = {"one": y[..., :1], "range": y + 2, "floats": y.float()}.get(self.fault, y)
        if self.fault == "array":
            y = y.numpy()
        part = Examples(x, y)
        return Episode(part, Examples(x[:, :1], y) if self.fault == "query" else part)

    def to(self, device):
        pass


@pytest.mark.parametrize("family", [Fit(), Fit(classes=True), Sinusoid(), Fit(fault="double")])
def test_accepts_what_fits(family):
    refuse_unfit(family)


REFUSED = {
    (False, "bug"): r"dataset=Fit: expected an Episode from draw\('train', generator, 2\), got KeyError: 'x'",
    (False, "pair"): "dataset=Fit: expected draw to return an Episode of Examples, got tuple",
    (False, "shape"): r"support of train: expected x \[2, points, 2\] of floats, got \[2, 4, 1\] of torch.float32",
    (False, "tasks"): r"support of train: expected x \[2, points, 2\] of floats, got \[1, 4, 2\]",
    (False, "integers"): r"expected x \[2, points, 2\] of floats, got \[2, 4, 2\] of torch.int64",
    (False, "one"): r"support of train: expected y \[2, 4, 2\] of floats, got \[2, 4, 1\]",
    (False, "query"): r"query of train: expected y \[2, 1, 2\] of floats, got \[2, 4, 2\]",
    (False, "array"): "expected tensors x and y, got .*ndarray",
    (False, "random"): "expected the same tasks of the same generator, got others at the second look, of train",
    (True, "range"): r"support of train: expected classes 0 .. 1, got 2 .. 3",
    (True, "floats"): r"expected y \[2, 4\] of int64, got \[2, 4\] of torch.float32",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refuses_what_does_not(fault):
    with pytest.raises(ValueError, match=REFUSED[fault]) as refusal:
        refuse_unfit(Fit(*fault))
    assert "\n" not in str(refusal.value)


def test_what_is_missing():
    class Bare:
        input_shape = (1,)

    with pytest.raises(ValueError, match=r"dataset=Bare: expected the attributes .*, got no meta_batch, outputs"):
        refuse_unfit(Bare())
    with pytest.raises(FileNotFoundError, match="no such table"):
        refuse_unfit(Fit(fault="data"))
