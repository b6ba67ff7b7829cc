"""The exact predictor of a family against brute-force integration, against itself refined, and its own coverage."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import assert_equal
from scipy.integrate import quad
from scipy.stats import norm, truncnorm
from torch.func import vmap

from meta_exp.likelihoods.predictive import COVERAGE_LEVELS
from meta_exp.scoring.optimal import _equal_atoms, _log_mass, optimal_predictive
from meta_exp.tasks import Linear, Sinusoid, Step
from meta_exp.tasks.episode import Examples
from meta_exp.tasks.stream import draw_tasks


def task(family, i=0):
    batch = draw_tasks(family, "test", i, i + 1)
    return [Examples(e.x[0].double(), e.y[0].double()) for e in batch]


def grid(low, high, points):
    """Gauss-Legendre nodes and weights in numpy."""
    x, w = np.polynomial.legendre.leggauss(points)
    return (low + high) / 2 + (high - low) / 2 * x, (high - low) / 2 * w


def pairs(x, y):
    return zip(x[:, 0].numpy(), y[:, 0].numpy(), strict=True)


def mixture_of_grid(functions, log_likelihood, weights, noise, y):
    """log density, mean, variance and F at y of one query point, for functions' values [G] there."""
    w = weights * np.exp(log_likelihood - log_likelihood.max())
    w = w / w.sum()
    mean = (w * functions).sum()
    variance = (w * (functions - mean) ** 2).sum() + noise**2
    return np.log((w * norm.pdf(y, functions, noise)).sum()), mean, variance, (w * norm.cdf(y, functions, noise)).sum()


def brute_force(family, support, x, y, boxes, points):
    """The same for each query point, on a dense grid over all the parameters, given their boxes."""
    axes = [grid(*box, n) for box, n in zip(boxes, points, strict=True)]
    parameters = [p.ravel() for p in np.meshgrid(*(a[0] for a in axes), indexing="ij")]
    weights = np.prod([w.ravel() for w in np.meshgrid(*(a[1] for a in axes), indexing="ij")], axis=0)

    def f(at):
        if isinstance(family, Sinusoid):
            amplitude, phase, frequency = parameters
            return amplitude * np.sin(frequency * at - phase)
        return parameters[0] * at + parameters[1]

    log_likelihood = sum(norm.logpdf(b, f(a), family.noise) for a, b in pairs(support.x, support.y))
    found = [mixture_of_grid(f(a), log_likelihood, weights, family.noise, b) for a, b in pairs(x, y)]
    return torch.from_numpy(np.array(found)).T


def compare(predictive, y, expected, atol):
    found = [predictive.log_prob(y), predictive.mean[:, 0], predictive.variance[:, 0], predictive.cdf(y)[:, 0]]
    assert_equal(torch.stack(found), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("shots", [1, 2, 5])
@pytest.mark.parametrize(
    ("family", "ranges"), [(Sinusoid, ("amplitude", "phase", "frequency")), (Linear, ("slope", "intercept"))]
)
def test_it_is_the_integral_over_all_parameters(family, ranges, shots):
    family = family(shots=shots, queries=4, noise=0.3)
    support, query = task(family)
    boxes = [getattr(family, name) for name in ranges]
    points = [1 if low == high else 300 for low, high in boxes]
    boxes = [(low, high) if low < high else (low - 0.5, high + 0.5) for low, high in boxes]  # one node in the middle
    predictive = optimal_predictive(family, support, query.x)
    compare(predictive, query.y, brute_force(family, support, query.x, query.y, boxes, points), atol=2e-5)


def test_a_frequency_is_integrated_too():
    family = Sinusoid(shots=4, queries=4, noise=0.5, frequency=(0.5, 1.5))
    support, query = task(family)
    boxes = [family.amplitude, family.phase, family.frequency]
    expected = brute_force(family, support, query.x, query.y, boxes, [40, 80, 100])
    compare(optimal_predictive(family, support, query.x), query.y, expected, atol=1e-4)


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("family", [Sinusoid, Linear])
def test_small_noise_and_many_points(family, i):
    """The posterior is a thousandth of the prior's range wide; brute force gets a box of twelve deviations."""
    family = family(shots=10, queries=4, noise=0.01)
    support, query = task(family, i)
    x, y = support.x[:, 0], support.y[:, 0]
    if isinstance(family, Sinusoid):
        basis = torch.stack([x.sin(), -x.cos()], 1)
        a, b = torch.linalg.lstsq(basis, y[:, None]).solution[:, 0]
        amplitude, phase = torch.hypot(a, b), torch.atan2(b, a)
        jacobian = torch.stack([torch.sin(x - phase), -amplitude * torch.cos(x - phase)], 1)
        centre = torch.stack([amplitude, phase])
        ranges = [family.amplitude, family.phase]
    else:
        jacobian = torch.stack([x, torch.ones_like(x)], 1)
        centre = torch.linalg.lstsq(jacobian, y[:, None]).solution[:, 0]
        ranges = [family.slope, family.intercept]
    deviation = family.noise * torch.linalg.inv(jacobian.mT @ jacobian).diagonal().sqrt()
    boxes = [
        (max(low, float(c - 12 * d)), min(high, float(c + 12 * d)))
        for (low, high), c, d in zip(ranges, centre, deviation, strict=True)
    ]
    points = [160, 160]
    if isinstance(family, Sinusoid):
        boxes, points = [*boxes, (0.5, 1.5)], [*points, 1]
    expected = brute_force(family, support, query.x, query.y, boxes, points)
    compare(optimal_predictive(family, support, query.x), query.y, expected, atol=2e-3)
    compare(optimal_predictive(family, support, query.x, panels=200), query.y, expected, atol=1e-7)


@pytest.mark.parametrize("noise", [0.3, 0.05])
def test_steps_are_integrated_exactly(noise):
    """Given the edge, each level is a truncated Gaussian of scipy; the edge is on a grid between all the inputs."""
    family = Step(shots=4, queries=5, noise=noise, edge=(-2.5, 2.5))
    support, query = task(family, 1)
    x, y = support.x[:, 0].numpy(), support.y[:, 0].numpy()
    cuts = np.unique(np.clip(np.concatenate([[-2.5, 2.5], x, query.x[:, 0]]), -2.5, 2.5))
    levels, widths = grid(*family.level, 500)
    evidence, rows = [], []
    for start, stop in pairwise(cuts):
        edge = (start + stop) / 2
        posterior = {}
        for left in (True, False):
            log_likelihood = sum(norm.logpdf(b, levels, noise) for b in y[(x < edge) == left]) + 0 * levels
            posterior[left] = widths * np.exp(log_likelihood)
        evidence.append((stop - start) * posterior[True].sum() * posterior[False].sum())
        row = []
        for a, b in pairs(query.x, query.y):
            w = posterior[bool(a < edge)] / posterior[bool(a < edge)].sum()
            of_levels = norm.pdf(b, levels, noise), levels, levels**2, norm.cdf(b, levels, noise)
            row.append([(w * values).sum() for values in of_levels])
        rows.append(row)
    weights = np.array(evidence) / sum(evidence)
    density, mean, square, cdf = np.einsum("g,gmk->km", weights, np.array(rows))
    expected = torch.from_numpy(np.stack([np.log(density), mean, square - mean**2 + noise**2, cdf]))
    compare(optimal_predictive(family, support, query.x), query.y, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("family", "noise", "shots", "atol"),
    [
        (Sinusoid, 0.3, 10, 1e-6),
        (Sinusoid, 0.1, 5, 1e-4),
        (Linear, 0.01, 10, 1e-3),
        (Sinusoid, 0.01, 10, 1e-3),
        (Sinusoid, 0.001, 10, 5e-2),
    ],
)
def test_more_nodes_change_nothing(family, noise, shots, atol):
    """The errors that the module states, over 20 tasks."""
    family = family(noise=noise, shots=shots)

    def scores(support, query, panels):
        found = optimal_predictive(family, support, query.x, panels)
        return found.log_prob(query.y), found.cdf(query.y)

    tasks = draw_tasks(family, "test", 0, 20)
    coarse, fine = (vmap(lambda *e, p=panels: scores(*e, p))(*tasks) for panels in (None, 128))
    assert_equal(coarse, fine, rtol=0, atol=atol)
    assert_equal(coarse[0].mean(), fine[0].mean(), rtol=0, atol=atol / 20)


@pytest.mark.parametrize(("family", "rtol"), [(Sinusoid, 2e-4), (Linear, 2e-4), (Step, 5e-3)])
def test_density_integrates_to_the_cdf_and_the_crps_is_the_integral(family, rtol):
    family = family(shots=2, queries=2, noise=0.2)
    support, query = task(family, 3)
    predictive = optimal_predictive(family, support, query.x)

    def density(t, m):
        return float(predictive.log_prob(torch.full((2, 1), t).double())[m].exp())

    def square(t, m):
        return (float(predictive.cdf(torch.full((2, 1), t).double())[m, 0]) - (t >= float(query.y[m]))) ** 2

    crps, cdf = predictive.crps(query.y), predictive.cdf(query.y)
    for m in range(2):
        y = float(query.y[m])
        assert quad(density, -9, y, args=(m,), limit=200)[0] == pytest.approx(float(cdf[m, 0]), abs=1e-6)
        assert quad(density, -9, 9, args=(m,), limit=200, points=[y])[0] == pytest.approx(1, abs=1e-6)
        expected = quad(square, -9, y, args=(m,), epsabs=1e-7)[0] + quad(square, y, 9, args=(m,), epsabs=1e-7)[0]
        assert float(crps[m, 0]) == pytest.approx(expected, rel=rtol)


def test_quantiles_invert_the_cdf():
    family = Sinusoid(shots=2, noise=0.1)
    support, query = task(family)
    predictive = optimal_predictive(family, support, query.x)
    for q in (0.025, 0.5, 0.9):
        found = predictive.quantile(q)
        assert found.shape == (10, 1)
        assert_equal(predictive.cdf(found), torch.full((10, 1), q, dtype=torch.double), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", [Sinusoid, Linear, Step])
def test_its_own_coverage_is_nominal(family):
    """Points of a task share its posterior, so that the error is that of the tasks' means."""
    family = family(noise=0.3, shots=5)
    tasks = draw_tasks(family, "test", 0, 200)

    def scores(support, query):
        found = optimal_predictive(family, support, query.x)
        return found.scores(query.y), found.histograms(query.y)["pit"], found.variance.mean()

    scores, pit, variance = vmap(scores, chunk_size=20)(*tasks)
    for level in COVERAGE_LEVELS:
        covered = scores[f"coverage_{level}"]
        assert float(covered.mean()) == pytest.approx(level / 100, abs=float(4 * covered.std() / math.sqrt(200)))
    excess = scores["mse"] - variance
    assert float(excess.mean()) == pytest.approx(0, abs=float(4 * excess.std() / math.sqrt(200)))
    assert_equal(
        pit.mean(0), torch.full((20,), 0.5).double(), rtol=0, atol=float(4 * pit.std(0).max() / math.sqrt(200))
    )


@pytest.mark.parametrize(
    ("noise", "shots", "nll"),
    [(0.3, 10, 0.322), (0.3, 5, 0.399), (0.1, 10, -0.777), (0.1, 5, -0.699), (1.0, 10, 1.496)],
)
def test_known_values_of_the_sinusoids(noise, shots, nll):
    """Found once by a plain quadrature on a grid, on 300 other tasks, with a standard error of 0.03."""
    family = Sinusoid(noise=noise, shots=shots)
    found = vmap(lambda s, q: optimal_predictive(family, s, q.x).log_prob(q.y), chunk_size=20)(
        *draw_tasks(family, "test", 0, 100)
    )
    assert -float(found.mean()) == pytest.approx(nll, abs=4 * math.hypot(0.029, float(found.mean(1).std()) / 10))


def test_tasks_are_vmapped_with_the_values_of_each_alone():
    family = Sinusoid(noise=0.3, shots=3, queries=2)
    batch = draw_tasks(family, "test", 0, 3)
    together = vmap(lambda s, q: optimal_predictive(family, s, q.x).crps(q.y))(*batch)
    for i in range(3):
        support, query = (Examples(e.x[i], e.y[i]) for e in batch)
        assert_equal(together[i], optimal_predictive(family, support, query.x).crps(query.y))


def test_ranges_that_are_points_leave_the_noise_alone():
    families = [
        Sinusoid(noise=0.3, amplitude=(2.0, 2.0), phase=(1.0, 1.0)),
        Linear(noise=0.3, slope=(0.5, 0.5), intercept=(-1.0, -1.0)),
        Step(noise=0.3, level=(2.0, 2.0), edge=(1.0, 1.0)),
    ]
    for family in families:
        support, query = task(family)
        predictive = optimal_predictive(family, support, query.x)
        noise_free = torch.from_numpy(family.curves(np.random.default_rng(0), 1)(query.x.numpy()[None]))[0]
        assert_equal(predictive.mean, noise_free, rtol=0, atol=1e-6)
        assert_equal(predictive.variance, torch.full((10, 1), 0.09).double(), rtol=1e-6)
        expected = torch.distributions.Normal(noise_free, 0.3)
        assert_equal(predictive.log_prob(query.y), expected.log_prob(query.y)[:, 0], rtol=0, atol=1e-5)
        assert_equal(predictive.cdf(query.y), expected.cdf(query.y), rtol=0, atol=1e-5)


def test_one_range_that_is_a_point():
    """With a known slope the intercept is a truncated Gaussian, whatever the quadrature."""
    family = Linear(noise=0.5, slope=(0.5, 0.5), shots=3)
    support, query = task(family)
    residuals = (support.y - 0.5 * support.x).numpy()
    deviation = 0.5 / math.sqrt(3)
    bounds = (np.array([-3.0, 3.0]) - residuals.mean()) / deviation
    intercept = truncnorm(*bounds, residuals.mean(), deviation)
    predictive = optimal_predictive(family, support, query.x)
    assert_equal(predictive.mean, 0.5 * query.x + intercept.mean(), rtol=0, atol=1e-7)
    assert_equal(predictive.variance, torch.full((10, 1), intercept.var() + 0.25).double(), rtol=0, atol=1e-7)


def test_mass_of_a_range_is_that_of_scipy():
    mean = torch.tensor([0.0, 30.0, -30.0, 0.0, 1e4, 0.5]).double()
    low, high = torch.tensor([-1.0, -1, -1, 1e-5, -1, -1e3]).double(), torch.tensor([2.0, 1, 1, 2e-5, 1, 1e3]).double()
    found = _log_mass(mean, torch.ones(6).double(), low, high)
    expected = [
        norm.logcdf(h - m) + np.log(-np.expm1(norm.logcdf(a - m) - norm.logcdf(h - m)))
        if m >= 0
        else norm.logsf(a - m) + np.log(-np.expm1(norm.logsf(h - m) - norm.logsf(a - m)))
        for m, a, h in zip(mean.numpy(), low.numpy(), high.numpy(), strict=True)
    ]
    assert_equal(found, torch.tensor(expected).double(), rtol=1e-9, atol=1e-9)


def test_atoms_of_equal_weight_keep_mean_and_variance():
    generator = torch.Generator().manual_seed(0)
    values, weights = (torch.rand(500, 3, generator=generator).double() for _ in range(2))
    weights = weights / weights.sum(0)
    means, variances = _equal_atoms(values, weights)
    assert_equal(means.mean(0), (weights * values).sum(0))
    square = (weights * values**2).sum(0)
    assert_equal((variances + means**2).mean(0), square)
    assert (means.diff(dim=0) > 0).all()
