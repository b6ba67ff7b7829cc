"""Max-pooling by comparisons: values and derivatives are those of PyTorch's, with ties, odd sides and vmap too."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from meta_exp.models.pool import MaxPool2d, by_comparisons


@pytest.mark.parametrize("sides", [(4, 6), (5, 7), (2, 3)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("signs", [None, (1.0, -1.0, -1.0)])
def test_values_and_derivatives_are_those_of_pytorch(sides, tied, signs):
    """Of equal values the first, row by row, has the derivative; the second derivative goes the same way.

    Of channels whose sign is -1 the smallest value goes on.
    """
    torch.manual_seed(0)
    x = torch.randint(3, (2, 3, *sides)).double() if tied else torch.randn(2, 3, *sides, dtype=torch.float64)
    weight = torch.randn(2, 3, sides[0] // 2, sides[1] // 2, dtype=torch.float64)

    def derivatives(pool):
        def loss(x):
            return (weight * pool(x).exp()).sum()

        return pool(x), grad(loss)(x), grad(lambda x: grad(loss)(x).square().sum())(x)

    signs = signs and torch.tensor(signs).double()
    of_channels = torch.ones(3, 1, 1).double() if signs is None else signs[:, None, None]

    def expected(x):
        return of_channels * F.max_pool2d(of_channels * x, 2)

    found = partial(by_comparisons, signs=signs)
    for ours, theirs in zip(derivatives(found), derivatives(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    tasks = torch.stack([x, -x])
    torch.testing.assert_close(vmap(found)(tasks), vmap(expected)(tasks), rtol=0, atol=0)


def test_what_is_not_a_number_is_kept():
    """Wherever in its window: the loop that finds that a training diverged looks for it."""
    x = torch.zeros(4, 1, 2, 2)
    x.view(4, 4).fill_diagonal_(torch.nan)
    assert by_comparisons(x).isnan().all()


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.usefixtures("one_source")
def test_compiled_code_compares():
    pool, x = MaxPool2d(), torch.randn(2, 3, 5, 6)
    compiled = torch.compile(lambda x: grad(lambda x: pool(x).square().sum())(x), dynamic=False)
    torch.testing.assert_close(compiled(x), grad(lambda x: F.max_pool2d(x, 2).square().sum())(x))
