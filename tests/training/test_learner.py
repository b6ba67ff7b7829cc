"""The meta-gradient that the optimizer gets is that of the objective; bad numbers stop a run."""

from pathlib import Path

import pytest
import torch
from oracles import assert_equal, episodes

from meta_exp.algorithms import LLAMA, PLATIPUS
from meta_exp.curvature import KFAC
from meta_exp.likelihoods import Categorical
from meta_exp.models import Conv4
from meta_exp.runs.build import build
from meta_exp.tasks.foreign import Foreign
from meta_exp.tasks.stream import draw_batch
from meta_exp.training.learner import TRAINING, Learner

REPO = Path(__file__).parents[2]
TINY = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "dataset.meta_batch=6"]


def meta_gradient(run):
    _, gradient, hyper_gradient, _ = run.learner.meta_gradient(draw_batch(run.family, 0, "train", 0))
    return torch.cat([g.flatten() for g in (*gradient.values(), *hyper_gradient.values())])


def test_gradient_is_that_of_the_mean_objective(config):
    """Central differences of the reported objective along a random direction, in float64."""
    run = build(config(*TINY))
    run.learner.double()
    run.learner.algorithm.curvature.taps.model.double()
    episodes = torch.utils._pytree.tree_map(torch.Tensor.double, draw_batch(run.family, 0, "train", 0))
    _, gradient, hyper_gradient, _ = run.learner.meta_gradient(episodes)
    parameters = [*run.learner.model.parameters(), *run.learner.hyper.values()]
    gradients = [*gradient.values(), *hyper_gradient.values()]
    direction = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double() for i, p in enumerate(parameters)
    ]

    def objective(step):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(step * d)
        return run.learner.meta_gradient(episodes)[0]

    h = 1e-6
    difference = (objective(h) - objective(-2 * h)) / (2 * h)
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    torch.testing.assert_close(difference, expected, rtol=1e-5, atol=1e-6)


def test_optimizer_receives_the_meta_gradient(config):
    """One SGD step of Lightning's loop moves theta by -lr times the meta-gradient of batch 0."""
    run = build(config(*TINY, "optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "trainer.max_steps=1"))
    before = torch.cat([p.detach().flatten().clone() for p in run.learner.parameters()])
    gradient = meta_gradient(run)
    run.trainer.fit(run.learner, run.stream)
    after = torch.cat([p.detach().flatten() for p in run.learner.parameters()])
    torch.testing.assert_close(after, before - 0.1 * gradient)


def test_clipping_sees_the_meta_gradient(config):
    overrides = ["optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0", "trainer.max_steps=1"]
    run = build(config(*TINY, *overrides, "trainer.gradient_clip_val=0.01"))
    before = torch.cat([p.detach().flatten().clone() for p in run.learner.parameters()])
    run.trainer.fit(run.learner, run.stream)
    moved = torch.cat([p.detach().flatten() for p in run.learner.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("curvature", [KFAC, None])
def test_one_task_at_a_time_has_the_scores_of_all_together(curvature):
    """Of images, with foreign ones, draws from the posterior, or a noise that each task's path has."""
    shape = 3, 16, 16
    model = Conv4(shape, 3, filters=2, downsample="max_pool").double()
    settings = {"model": model, "likelihood": Categorical(), "inner_lr": 0.1}
    algorithm = LLAMA(**settings, curvature=curvature(model, shape)) if curvature else PLATIPUS(**settings, particles=2)
    batch = episodes(Categorical(), shape, 3, tasks=3)
    foreign = Foreign(torch.rand_like(batch.query.x), torch.tensor([True, False, True]).expand(3, 3))

    def scores(chunk_size):
        learner = Learner(algorithm, torch.optim.Adam, samples=2, chunk_size=chunk_size)
        return learner.evaluate(batch, 2, learner.predictives, foreign=foreign)

    one, all_together = scores(1), scores(None)
    assert one.pooled
    assert_equal(one, all_together)


def test_same_seed_same_weights(config):
    def weights(seed):
        run = build(config(*TINY, f"seed={seed}"))
        run.trainer.fit(run.learner, run.stream)
        return torch.cat([p.detach().flatten() for p in run.learner.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("curvature", ["ggn", "kfac", "diagonal", "last_layer"])
def test_eta_zero_writes_the_checkpoints_of_maml(trained, curvature):
    """Weights and the optimizer's state, in both checkpoints, are equal to the last bit."""

    def checkpoints(name, *overrides):
        folder = trained(name, *TINY, "predictives=[map]", *overrides)
        loaded = (torch.load(folder / f"{part}.ckpt", weights_only=True) for part in ("best", "last"))
        return [(part["state_dict"], part["optimizer_states"]) for part in loaded]

    maml = checkpoints("tiny-maml", "algorithm=maml")
    llama = checkpoints(f"tiny-{curvature}", "algorithm=llama", f"curvature={curvature}", "algorithm.eta=0")
    torch.testing.assert_close(llama, maml, rtol=0, atol=0)


@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("curvature", ["ggn", "kfac", "diagonal", "last_layer"])
def test_trains_in_single_precision_at_any_tau(config, omniglot_root, curvature, tau):
    """On sinusoids and on real characters, with batch norm: no failure, and weights that stay finite."""
    small = ["dataset=omniglot", f"dataset.root={omniglot_root}", "dataset.queries=2", "model.filters=8"]
    for settings in (TINY[2:], [*small, "dataset.meta_batch=2", "chunk_size=null"]):
        choice = ["algorithm=llama", f"curvature={curvature}", f"curvature.prior_precision={tau}"]
        run = build(config(*TINY[:2], *settings, *choice, "algorithm.eta=0.5", "validation_tasks=2"))
        run.trainer.fit(run.learner, run.stream)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in run.learner.parameters())


def test_evaluation_and_production_take_the_exact_curvature(config, omniglot_root):
    """K-FAC that trains by one probe scores, and adapts to a new task, as with all passes."""
    small = ["dataset=omniglot", f"dataset.root={omniglot_root}", "dataset.queries=2", "model.filters=8"]
    settings = [*TINY[:2], *small, "dataset.meta_batch=2", "chunk_size=null", "algorithm=llama", "curvature=kfac"]
    settings += ["curvature.prior_precision=1", "likelihood=probit"]
    probe, whole = (build(config(*settings, f"curvature.probes={probes}")) for probes in (1, "null"))
    batch = draw_batch(probe.family, 0, "train", 0)
    found, expected = (run.learner.evaluate(batch, 1, ["map", "linearized"]).each for run in (probe, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    support = batch.support._replace(x=batch.support.x[0], y=batch.support.y[0])
    found, expected = (
        run.learner.adapt_task(support, None, 1)["linearized"].posterior.functional_variance(batch.query.x[0])
        for run in (probe, whole)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    trained, exact = (run.learner.meta_gradient(batch)[3]["log_det"] for run in (probe, whole))
    assert (trained - exact).abs() > 1e-3 * exact


@pytest.mark.parametrize("tau", [1e-2, 1e6])
def test_warns_once_of_a_collapsed_network(config, caplog, tau):
    """Training is not warned of; the same network is, once, when its outputs are made to depend on their bias alone."""
    run = build(config(*TINY, f"curvature.prior_precision={tau}"))
    run.trainer.fit(run.learner, run.stream)
    assert "collapsed" not in caplog.text
    with torch.no_grad():
        for parameter in list(run.learner.model.parameters())[:-1]:
            parameter.zero_()
    scores = run.learner.evaluate(draw_batch(run.family, 0, "train", 0), 1, []).each
    torch.testing.assert_close(scores["log_det"], scores["log_det_floor"], rtol=1e-5, atol=0)
    for _ in range(2):
        run.learner._warn_if_collapsed(scores)
    assert caplog.text.count("the network has collapsed: log det is") == 1


@pytest.mark.parametrize(
    ("prior_term", "remedy"), [("false", "a larger curvature.prior"), ("true", "a smaller curvature.prior")]
)
def test_the_remedy_of_a_collapse_depends_on_the_prior_term(config, caplog, prior_term, remedy):
    """A larger tau lets the log det be; with the prior term it would forbid adaptation altogether."""
    run = build(config(*TINY, f"algorithm.prior_term={prior_term}"))
    run.learner._warn_if_collapsed({"log_det": torch.ones(2), "log_det_floor": torch.ones(2)})
    assert "the network has collapsed: log det is 1, that of outputs" in caplog.text
    assert remedy in caplog.text


@pytest.mark.parametrize("data", ["support", "query"])
def test_the_floor_is_that_of_the_data_of_the_log_det(config, data):
    """With 4 support points and 12 queries they differ; a network of a bias alone stands on the floor of its data."""
    run = build(config(*TINY, f"algorithm.data={data}", "dataset.shots=4", "dataset.queries=12"))
    with torch.no_grad():
        for parameter in list(run.learner.model.parameters())[:-1]:
            parameter.zero_()
    batch = draw_batch(run.family, 0, "train", 0)
    trained = run.learner.meta_gradient(batch)[3]["log_det"]
    floor = run.learner.evaluate(batch, 1, [], of_objective=True).each["log_det_floor"].mean()
    torch.testing.assert_close(floor, trained, rtol=1e-5, atol=0)
    served = run.learner.evaluate(batch, 1, []).each["log_det_floor"].mean()
    assert (served - floor).abs() < 1e-6 if data == "support" else served < 0.5 * floor


def test_a_validation_without_any_prediction_ends_the_run(config, caplog):
    """A hundred steps leave nothing of tasks that one adapts to: the remedy is named, and no run is called finished."""
    run = build(config(*TINY, "evaluation_steps=100", "algorithm.inner_lr=10", "optimizer.lr=1e-9"))
    said = r"step 2: map has no prediction \(NaN\) after 100 steps for 100 of 100 .*; try evaluation_steps=1.* or"
    with pytest.raises(FloatingPointError, match=said):
        run.trainer.fit(run.learner, run.stream)
    run.learner._stop_if_all_failed({"loss": torch.ones(3), "map/nll": torch.tensor([1.0, torch.nan, 2.0])})
    assert "map has no prediction (NaN) after 100 steps for 1 of 3 validation tasks; the mean is NaN" in caplog.text


def test_a_number_that_is_not_finite_stops_the_run(config):
    run = build(config(*TINY, "optimizer=sgd", "optimizer.lr=1e20"))
    with pytest.raises(FloatingPointError, match=r"step \d.*tasks has x in .* Try a smaller optimizer.lr"):
        run.trainer.fit(run.learner, run.stream)


DIVERGES = {
    "optimizer.lr=1e20": (
        r"the outputs at the meta-parameters are not finite; .* smaller optimizer\.lr or trainer\.gradient_clip_val=1\."
    ),
    "algorithm.inner_lr=1000": r"step 0: .* inner loop diverges, in step \d+ of 20; .* a smaller algorithm\.inner_lr",
}


@pytest.mark.parametrize("algorithm", sorted(file.stem for file in (REPO / "conf/algorithm").glob("*.yaml")))
def test_every_algorithm_can_be_asked_what_diverged(config, algorithm):
    """Also one whose state is several networks, or a network with its deviations."""
    run = build(config(*TINY, f"algorithm={algorithm}"))
    learner, batch = run.learner, draw_batch(run.family, 0, "train", 0)
    reason, _ = learner._what_diverged(batch, learner.path_noise(batch, (TRAINING, 0, 0)))
    assert reason == "the inner loop is finite, what follows it is not"


@pytest.mark.parametrize("override", DIVERGES)
def test_what_diverged_is_told(config, override):
    """Clipping the outer step is advised where that helps: no inner loop is mended by it."""
    run = build(config(*TINY, "algorithm=maml", "algorithm.inner_steps=20", "optimizer=sgd", override))
    with pytest.raises(FloatingPointError, match=DIVERGES[override]) as error:
        run.trainer.fit(run.learner, run.stream)
    assert ("clip" in str(error.value)) == override.startswith("optimizer")
