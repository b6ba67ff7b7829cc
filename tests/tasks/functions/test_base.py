"""What all families of curves share, and the formula of each."""

import numpy as np
import pytest
import torch

from meta_exp.tasks import Harmonic, Linear, Sinusoid, Step

FAMILIES = [Sinusoid, Harmonic, Step, Linear]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_ranges(family) -> None:
    support, query = family(shots=3, queries=700, x_range=(-2.0, 1.0)).draw("train", rng(), tasks=5)
    assert support.x.shape == support.y.shape == (5, 3, 1)
    assert query.x.shape == query.y.shape == (5, 700, 1)
    assert support.x.dtype == query.y.dtype == torch.float32
    assert -2 <= query.x.min() < -1.98
    assert 0.98 < query.x.max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_has_the_given_deviation(family) -> None:
    quiet, noisy = (family(shots=2000, noise=noise).draw("train", rng(), tasks=4) for noise in (0.0, 0.3))
    assert torch.equal(noisy.support.x, quiet.support.x)
    assert (noisy.support.y - quiet.support.y).std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_show_the_curve_of_the_support(family) -> None:
    support, query = family(shots=50).draw_curves(rng(), tasks=2, points=4001)
    assert (query.x[:, 0] == -5).all()
    assert (query.x[:, -1] == 5).all()
    assert support.x.max() <= 0
    nearest = (support.x - query.x.mT).abs().argmin(2, keepdim=True)
    close = (support.y - query.y.gather(1, nearest)).abs() < 0.05
    assert close.float().mean() > 0.97  # all but points beside a jump


def test_frequency_of_a_sinusoid() -> None:
    family = Sinusoid(amplitude=(2.0, 2.0), phase=(1.0, 1.0), frequency=(3.0, 3.0))
    query = family.draw("train", rng(), tasks=2).query
    torch.testing.assert_close(query.y, 2 * torch.sin(3 * query.x - 1), rtol=0, atol=1e-5)
    varied = Sinusoid(amplitude=(2.0, 2.0), phase=(0.0, 0.0), frequency=(1.0, 3.0)).curves(rng(), 100)
    slopes = varied(np.full((100, 1, 1), 1e-6)) / 2e-6  # A f x near 0
    assert 1 <= slopes.min() < 1.1 < 2.9 < slopes.max() <= 3


def test_the_frequency_of_the_paper_leaves_the_tasks_as_they_were() -> None:
    """The published results are for these tasks: amplitude and phase are the first that the generator gives."""
    generator = rng()
    amplitude, phase = generator.uniform(0.1, 5.0, (3, 1, 1)), generator.uniform(0, np.pi, (3, 1, 1))
    x = generator.uniform(-5.0, 5.0, (3, 20, 1))
    query = Sinusoid().draw("test", rng(), tasks=3).query
    torch.testing.assert_close(query.y, torch.from_numpy(amplitude * np.sin(x - phase)).float()[:, 10:])


def test_harmonics_are_a_fourier_sum() -> None:
    """On a whole period, y holds the multiples of its frequency up to ``harmonics``, and none beyond."""
    family = Harmonic(harmonics=3, amplitude=(1.0, 2.0), frequency=(1.0, 1.0))
    x = np.tile(np.linspace(-np.pi, np.pi, 64, endpoint=False)[:, None], (5, 1, 1))
    spectrum = np.abs(np.fft.rfft(family.curves(rng(), 5)(x)[..., 0], axis=1)) / 32
    for h in (1, 2, 3):
        assert (spectrum[:, h] >= 1 / h - 1e-9).all()
        assert (spectrum[:, h] <= 2 / h + 1e-9).all()
    np.testing.assert_allclose(np.delete(spectrum, [1, 2, 3], axis=1), 0, atol=1e-9)


def test_one_harmonic_is_a_sinusoid() -> None:
    ranges = {"amplitude": (2.0, 2.0), "phase": (1.0, 1.0), "frequency": (1.5, 1.5)}
    harmonic, sinusoid = (
        family.draw("train", rng(), 2) for family in (Harmonic(harmonics=1, **ranges), Sinusoid(**ranges))
    )
    torch.testing.assert_close(harmonic.query, sinusoid.query)


def test_steps_have_two_levels_and_one_edge() -> None:
    x, y = Step(queries=400, level=(-2.0, 2.0), edge=(-1.0, 1.0)).draw("train", rng(), 50).query
    order = x[..., 0].argsort(1)
    jumps = y[..., 0].gather(1, order).diff(dim=1).ne(0)
    assert (jumps.sum(1) == 1).all()
    edges = x[..., 0].gather(1, order)[:, 1:][jumps]
    assert -1.1 < edges.min() < -0.7
    assert 0.7 < edges.max() < 1.1
    assert 1.8 < y.abs().max() <= 2


def test_lines_have_slope_and_intercept_in_range() -> None:
    x, y = Linear(slope=(0.0, 2.0), intercept=(1.0, 1.0)).draw("train", rng(), 200).query
    slopes = (y - 1) / x
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), rtol=1e-2, atol=1e-3)
    assert -1e-3 <= slopes.min() < 0.05
    assert 1.95 < slopes.max() <= 2.001


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (Sinusoid, {"shots": 0}, "dataset.shots: expected at least 1, got 0"),
        (Sinusoid, {"frequency": (2.0, 1.0)}, r"dataset.frequency: expected \[low, high\] with low <= high, got"),
        (Harmonic, {"harmonics": 0}, "dataset.harmonics: expected at least 1, got 0"),
        (Step, {"edge": (1.0, 0.0)}, "dataset.edge: expected "),
        (Linear, {"noise": -1.0}, "dataset.noise: expected a standard deviation >= 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(family, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        family(**settings)
