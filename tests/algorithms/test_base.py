"""Algorithms of other kinds than MAML's go through the same loop everywhere, with nothing changed outside their class.

Each is held against a gradient written out with torch.autograd, and checkpointed, compiled and evaluated alike.
"""

from dataclasses import dataclass

import pytest
import torch
from oracles import assert_equal, episodes, initial, mlp, starts, task, vector
from torch import nn
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Meta, adapt, path
from meta_exp.algorithms import ABML, ANIL, BMAML, BOIL, MAML, PLATIPUS, Algorithm, MAMLPlusPlus, MetaSGD, Reptile
from meta_exp.curvature import GGN
from meta_exp.curvature.rows import identity_directions, jacobian_rows, to_matrix, to_params
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.scoring.task import evaluate
from meta_exp.training.meta_gradient import MetaGradient

RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class GaussNewton(MAML):
    """A Gauss-Newton step to the linearised mode around theta, the prior's mean, in place of a gradient step."""

    def step(self, params, support, k, meta):
        taps, sigma, tau = self.curvature.taps, self.likelihood.sigma_noise, self.curvature.prior_precision
        _, rows = jacobian_rows(taps, params, support.x, identity_directions)
        gram = sum(block.gram(block) for block in rows.values())
        residual = (support.y - self.network(params, support.x)).flatten()
        moved = {name: to_matrix(taps.layers[name], params, name) for name in rows}
        prior = {name: to_matrix(taps.layers[name], meta.theta, name) for name in rows}
        residual = residual + sum(block.apply(moved[name] - prior[name]) for name, block in rows.items())
        weights = torch.linalg.solve(gram + tau * sigma**2 * torch.eye(len(gram)).to(gram), residual)
        found = {}
        for name, block in rows.items():
            found |= to_params(taps.layers[name], name, prior[name] + block.combine(weights))
        return found


@dataclass(frozen=True, kw_only=True)
class NoStep(Algorithm):
    """No inner step at all: the query's -log p at theta."""

    inner_steps: int = 0

    def step(self, params, support, k, meta):
        raise AssertionError("no step is asked for")

    def objective(self, path, episode, meta):
        return self.nll(path[-1], episode.query, meta) / len(episode.query.y), {}


KINDS = [MetaSGD, MAMLPlusPlus, Reptile, ANIL, BOIL, BMAML, PLATIPUS, ABML, GaussNewton, NoStep]
OF_THEIR_OWN = [BMAML, PLATIPUS, ABML]  # posteriors, without a curvature


def make(kind, likelihood=None, steps=3, widths=(5, 4)):
    """An algorithm of the kind on a small network, its meta-parameters and a meta-batch."""
    likelihood = likelihood or Gaussian(0.5)
    model = mlp(outputs=2, widths=widths)
    settings = {"model": model, "likelihood": likelihood}
    if kind not in OF_THEIR_OWN:
        settings["curvature"] = GGN(model, (2,), 0.3)
    if kind is not NoStep:
        settings |= {"inner_lr": RATE, "inner_steps": steps}
    if kind is ABML:
        settings["deviation"] = 0.5
    algorithm = kind(**settings)
    batch = episodes(likelihood, (2,), 2)
    theta, hyper = initial(model), starts(algorithm.hyperparameters())
    hyper = {name: value.double() for name, value in hyper.items()}
    return algorithm, Meta(theta, hyper, noise_of(algorithm, theta, 2), torch.tensor(0.05)), batch


def noise_of(algorithm, theta, tasks):
    drawn = [algorithm.training_noise(torch.Generator().manual_seed(i), theta, 4) for i in range(tasks)]
    return None if drawn[0] is None else tree_map(lambda *each: torch.stack(each), *drawn)


def loop(algorithm, meta, batch):
    """Objective and gradients by torch.autograd, task by task, the path written as a loop."""
    tasks = len(batch.query.y)
    leaves = [{n: v.detach().clone().requires_grad_() for n, v in part.items()} for part in (meta.theta, meta.hyper)]
    objectives = []
    for i in range(tasks):
        noise = None if meta.noise is None else tree_map(lambda v, i=i: v[i], meta.noise)
        here = Meta(*leaves, noise, meta.progress)
        states = [algorithm.start(here)]
        for k in range(algorithm.inner_steps):
            states.append(algorithm.step(states[-1], task(batch, i).support, k, here))
        objectives.append(algorithm.objective(states, task(batch, i), here)[0])
    value = torch.stack(objectives).mean()
    flat = [v for part in leaves for v in part.values()]
    found = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
    return value.detach(), *({name: next(found) for name in part} for part in leaves)


@pytest.mark.parametrize("checkpoint_steps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind, checkpoint_steps):
    """In theta and in every learned value, with steps kept or computed anew."""
    algorithm, meta, batch = make(kind)
    found = MetaGradient(algorithm, checkpoint_steps=checkpoint_steps)(meta, batch)
    assert_equal(found[:3], loop(algorithm, meta, batch))
    assert any(value.abs().max() > 1e-6 for part in found[1:3] for value in part.values())


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.usefixtures("one_source")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_equals_eager(kind):
    """Also when progress and noise change after the code was compiled."""
    steps = 1 if kind in OF_THEIR_OWN else 2  # which compile for long
    algorithm, meta, batch = make(kind, steps=steps, widths=(3,))
    compiled = MetaGradient(algorithm)
    compiled.compile()
    later = meta._replace(progress=torch.tensor(1.0), noise=tree_map(lambda z: -z, meta.noise) if meta.noise else None)
    torch._dynamo.utils.counters.clear()
    for here in (meta, later):
        assert_equal(compiled(here, batch), MetaGradient(algorithm)(here, batch))
    assert not torch._dynamo.utils.counters["graph_break"], "compiled as a whole"
    if kind is MAMLPlusPlus:
        assert compiled(meta, batch)[0] != compiled(later, batch)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_takes_the_same_path(kind):
    """Its loss after as many steps is that of the network at the path's end, with learned values and noise in place."""
    algorithm, meta, batch = make(kind)
    one = task(batch)
    here = meta._replace(noise=None if meta.noise is None else tree_map(lambda v: v[0], meta.noise))
    states = list(path(algorithm, one.support, here, algorithm.inner_steps))
    assert_equal(adapt(algorithm, one.support, here, algorithm.inner_steps), states[-1])
    scores = evaluate(algorithm, here, one, steps=algorithm.inner_steps, predictives=["map"]).each
    outputs = algorithm.predict("map", states[-1], one.query.x, here).outputs
    expected = torch.stack([(output - one.query.y).square().mean() for output in outputs]).mean()
    assert_equal(scores["loss"], expected)
    if kind is MetaSGD:
        faster = here._replace(hyper={name: value + 0.1 for name, value in here.hyper.items()})
        assert evaluate(algorithm, faster, one, steps=3, predictives=["map"]).each["loss"] != scores["loss"]


def test_evaluation_goes_beyond_the_steps_of_training():
    algorithm, meta, batch = make(MetaSGD, steps=1)
    scores = evaluate(algorithm, meta, task(batch), steps=4, predictives=["map"]).each
    assert "map/mse_step_4" in scores


def test_two_learned_rates_train_as_they_are_shown():
    """What a learned value is called and worth is said once, by itself."""
    algorithm, meta, _ = make(MetaSGD, steps=1)
    learned = algorithm.hyperparameters()
    assert {entry.name for entry in learned.values()} == {f"rate.{name}" for name in meta.theta}
    assert all(entry.value(entry.start).mean().item() == pytest.approx(RATE) for entry in learned.values())


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
def test_state_that_changes_is_seen_by_compiled_code(caplog):
    """It is compiled anew; one that changes at every call is refused."""

    @dataclass(frozen=True, kw_only=True)
    class Weighted(MAML):
        weights: list

        def objective(self, path, episode, meta):
            nll, logs = super().objective(path, episode, meta)
            return self.weights[0] * nll, logs

    model = mlp(outputs=2)
    algorithm = Weighted(model=model, likelihood=Gaussian(0.5), inner_lr=RATE, weights=[0.5])
    meta, batch = Meta(initial(model), {}), episodes(Gaussian(), (2,), 2)
    compiled = MetaGradient(algorithm)
    compiled.compile()
    half = compiled(meta, batch)[0]
    algorithm.weights[0] = 1.0
    assert_equal(compiled(meta, batch)[0], 2 * half)
    assert "weights has changed since the meta-gradient was compiled" in caplog.text
    for weight in (2.0, 3.0):
        algorithm.weights[0] = weight
        assert_equal(compiled(meta, batch)[0], 2 * weight * half)
    algorithm.weights[0] = 4.0
    with pytest.raises(
        ValueError, match="expected no state but its arguments, got 'weights' changed; let it depend on"
    ):
        compiled(meta, batch)


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Categorical()])
def test_frozen_parameters_stay(likelihood):
    """They are not among theta, and move neither in the inner nor in the outer loop."""
    model = mlp(outputs=2)
    frozen = [name for name, _ in model.named_parameters()][:2]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    algorithm = MAML(model=model, likelihood=likelihood, inner_lr=RATE)
    theta = {name: value for name, value in initial(model).items() if name not in frozen}
    batch = episodes(likelihood, (2,), 2)
    found = MetaGradient(algorithm)(Meta(theta, {}), batch)
    assert set(found[1]) == set(theta)
    assert_equal(found[:2], loop(algorithm, Meta(theta, {}), batch)[:2])


def test_the_path_is_not_kept():
    """In evaluation one state of the path is alive beside the next, whatever their number."""
    model = nn.Sequential(nn.Linear(2, 2)).double()
    alive, most = [], []

    @dataclass(frozen=True, kw_only=True)
    class Counting(MAML):
        def step(self, params, support, k, meta):
            import weakref

            found = super().step(params, support, k, meta)
            for value in found.values():
                alive.append(weakref.ref(value))
            most.append(sum(ref() is not None for ref in alive))
            return found

    algorithm = Counting(model=model, likelihood=Gaussian(0.5), inner_lr=0.01)
    episode = task(episodes(Gaussian(), (2,), 2))
    with torch.no_grad():
        adapt(algorithm, episode.support, Meta(initial(model), {}), 50)
        evaluate(algorithm, Meta(initial(model), {}), episode, steps=50, predictives=["map"])
    assert max(most) <= 4  # two states of a weight and a bias


def test_every_method_of_the_path_is_reached():
    """Overriding ``step`` alone changes the objective, the evaluation and the gradient."""
    plain, meta, batch = make(MAML)
    other, _, _ = make(ANIL)
    assert MetaGradient(plain)(meta, batch)[0] != MetaGradient(other)(meta, batch)[0]
    assert not torch.equal(vector(MetaGradient(plain)(meta, batch)[1]), vector(MetaGradient(other)(meta, batch)[1]))
