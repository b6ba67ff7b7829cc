"""The meta-gradient by chunks, compiled or not, with checkpointed inner steps, is the plain one, in less memory."""

import logging
import threading

import pytest
import torch
from oracles import (
    LiveBytes,
    assert_equal,
    conv4,
    episodes,
    image_shape,
    initial,
    loop_gradient,
    mlp,
    objective_of,
    starts,
    task,
)
from torch.func import grad
from torch.utils._pytree import tree_map_only

from meta_exp.adaptation import Meta
from meta_exp.algorithms import LLAMA, MAML
from meta_exp.curvature import GGN, KFAC
from meta_exp.likelihoods import Categorical, Gaussian
from meta_exp.runs.build import build
from meta_exp.training import meta_gradient
from meta_exp.training.meta_gradient import MetaGradient

SHORT = ["trainer=smoke", "logger=none", "model.widths=[8,8]", "dataset.meta_batch=6"]


def llama(**settings):
    """LLAMA on a small network, and a function that takes the meta-gradient of seven tasks with given options."""
    model, likelihood = mlp(outputs=2), Gaussian(0.5)
    algorithm = LLAMA(
        model=model, likelihood=likelihood, curvature=GGN(model, (2,), 0.3), inner_lr=0.1, eta=0.5, **settings
    )
    batch = episodes(likelihood, (2,), 2, tasks=7)
    return algorithm, lambda **options: MetaGradient(algorithm, **options)(Meta(initial(model), {}), batch)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, "auto"])
def test_chunks_change_nothing_but_rounding(chunk_size):
    _, take = llama()
    assert_equal(take(chunk_size=chunk_size), take())


@pytest.mark.parametrize("first_order", [False, True])
def test_checkpointed_steps_on_a_convolutional_network(first_order):
    """With batch norm, three steps, against the loop over tasks."""
    model, batch = conv4(), episodes(Categorical(), image_shape("stride"), 3, tasks=2)
    settings = {"inner_lr": 0.1, "inner_steps": 3, "first_order": first_order}
    algorithm = MAML(model=model, likelihood=Categorical(), **settings)
    found = MetaGradient(algorithm, checkpoint_steps=True)(Meta(initial(model), {}), batch)[1]
    assert_equal(found, loop_gradient(algorithm, initial(model), batch))


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.parametrize(("downsample", "chunk_size"), [("stride", None), ("stride", 1), ("max_pool", None)])
def test_compiled_convolutional_network(downsample, chunk_size):
    """It takes other forms of the convolution when it is compiled, and its gradients go with a fused optimiser.

    Two of the four blocks, whose code is compiled in half the time; the second's norm sees 2 x 2 positions too.
    """
    model, shape = conv4(downsample=downsample), {"stride": (1, 5, 5), "max_pool": (1, 4, 4)}[downsample]
    model.blocks = model.blocks[:2]
    batch = episodes(Categorical(), shape, 3, tasks=2)
    algorithm = MAML(model=model, likelihood=Categorical(), inner_lr=0.1)
    compiled = MetaGradient(algorithm, chunk_size)
    compiled.compile()
    found, expected = (take(Meta(initial(model), {}), batch) for take in (compiled, MetaGradient(algorithm)))
    assert_equal(found, expected)
    parameters = dict(model.named_parameters())
    moved = {}
    for fused, gradients in ((True, found[1]), (False, expected[1])):
        copies = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        for name, value in copies.items():
            value.grad = gradients[name]
        torch.optim.Adam(copies.values(), lr=0.1, eps=1.0, fused=fused).step()
        moved[fused] = copies
    assert_equal(moved[True], moved[False])


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("kind", ["stride", "max_pool", "ggn", "kfac"])
def test_compiled_on_a_gpu(kind, chunk_size, caplog):
    """Three calls: compiled, recorded as a graph where that can be, and started as one."""
    caplog.set_level(logging.INFO)
    if kind in ("ggn", "kfac"):
        model, likelihood, shape = mlp(outputs=2), Gaussian(0.5), (2,)
        curvature = {"ggn": GGN, "kfac": KFAC}[kind](model, shape, 0.3)
        algorithm = LLAMA(model=model, likelihood=likelihood, curvature=curvature, inner_lr=0.1, eta=0.5)
    else:
        model, likelihood, shape = conv4(downsample=kind), Categorical(), image_shape(kind)
        algorithm = MAML(model=model, likelihood=likelihood, inner_lr=0.1, inner_steps=2)
    batches = [episodes(likelihood, shape, 2, tasks=4, seed=seed) for seed in range(3)]
    expected = [MetaGradient(algorithm)(Meta(initial(model), {}), batch) for batch in batches]
    model.cuda()
    gradient = MetaGradient(algorithm, chunk_size)
    gradient.compile()
    meta, batches = tree_map_only(torch.Tensor, lambda value: value.cuda(), (Meta(initial(model), {}), batches))
    found = [gradient(meta, batch) for batch in batches]
    assert_equal(tree_map_only(torch.Tensor, lambda value: value.cpu(), found), expected)
    assert kind == "kfac" or "no CUDA graph" not in caplog.text  # its eigenvalues wait for a value


@pytest.mark.filterwarnings("ignore")  # deprecations inside PyTorch's compiler
@pytest.mark.usefixtures("one_source")
@pytest.mark.parametrize("curvature", [None, KFAC])
def test_cores_share_out_a_chunk(curvature, monkeypatch):
    """Each takes its tasks, in code compiled for one core, and the sum has the tasks' order: the same at each call."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model, likelihood = mlp(outputs=3), Categorical()
    settings = {"inner_lr": 0.1, "curvature": curvature and curvature(model, (2,))}
    algorithm = LLAMA(model=model, likelihood=likelihood, eta=0.5, **settings) if curvature else None
    algorithm = algorithm or MAML(model=model, likelihood=likelihood, inner_lr=0.1)
    inputs = Meta(initial(model), {}), episodes(likelihood, (2,), 3, tasks=8)
    shared = MetaGradient(algorithm, chunk_size=4)
    shared.compile()
    used, eager = [], MetaGradient(algorithm)(*inputs)
    assert_equal(shared(*inputs), eager)
    compiled = shared._of_chunk

    def watched(meta, part, tasks):
        used.append((threading.get_ident(), len(part.query.y)))
        return compiled(meta, part, tasks)

    shared._of_chunk = watched
    first, second = shared(*inputs), shared(*inputs)
    assert_equal(first, eager)
    assert_equal(first, second, rtol=0, atol=0)
    assert {size for _, size in used} == {2}
    assert threading.get_ident() not in dict(used)


def test_checkpointed_steps_of_llama():
    """With what theta and the hyper-parameters add directly: the prior term, sigma and tau."""
    model, likelihood = mlp(outputs=2), Gaussian(0.5, learned=True)
    settings = {"inner_lr": 0.1, "inner_steps": 4, "eta": 0.5, "prior_term": True}
    curvature = GGN(model, (2,), 0.3, learned=True)
    algorithm = LLAMA(model=model, likelihood=likelihood, curvature=curvature, **settings)
    inputs = Meta(initial(model), starts(algorithm.hyperparameters())), episodes(likelihood, (2,), 2)
    assert_equal(MetaGradient(algorithm, checkpoint_steps=True)(*inputs), MetaGradient(algorithm)(*inputs))


def test_memory():
    """A graph fewer than torch.func.grad's saves much of the memory, and steps one at a time most of the rest."""
    model = mlp(outputs=2, widths=(20, 20, 20))
    algorithm = MAML(model=model, likelihood=Gaussian(), inner_lr=0.1, inner_steps=20)
    theta, batch = initial(model), episodes(Gaussian(), (2,), 2, tasks=1, support=300, query=300)

    def peak(take):
        with LiveBytes() as live:
            take(Meta(theta, {}), batch)
        return live.peak

    def with_a_graph(meta, batch):
        return grad(lambda theta: objective_of(algorithm, theta, {}, task(batch))[0])(meta.theta)

    plain = peak(MetaGradient(algorithm))
    assert plain < 0.6 * peak(with_a_graph)
    assert peak(MetaGradient(algorithm, checkpoint_steps=True)) < plain / 3


def test_trial_finds_the_fastest_chunk(monkeypatch, caplog):
    """With a clock that says four at once are fastest a task, and that more than five do not fit."""

    def clock(function, meta, batch, tasks):
        size = len(batch.query.y)
        if size > 5:
            raise torch.OutOfMemoryError
        return {1: 3.0, 2: 4.0, 4: 6.0}[size]

    monkeypatch.setattr(meta_gradient, "_seconds", clock)
    algorithm, _ = llama()
    found = MetaGradient(algorithm, chunk_size="auto")
    assert found.at_once is None
    with caplog.at_level(logging.INFO):
        found(Meta(initial(algorithm.model), {}), episodes(Gaussian(), (2,), 2, tasks=7))
    assert found.at_once == 4
    assert "chunk_size=auto: 4 of 7 tasks at once" in caplog.text


def test_a_continued_run_keeps_the_chunk_of_its_trial(config, tmp_path, monkeypatch):
    """Another trial could find another one, and the last bits of the weights with it."""
    run = build(config(*SHORT, "chunk_size=auto"))
    monkeypatch.setattr(meta_gradient, "_seconds", lambda *_: 1.0)  # all are as fast: the largest is
    run.trainer.fit(run.learner, run.stream)
    assert run.learner.gradient.chunk_size == 6
    run.trainer.save_checkpoint(tmp_path / "last.ckpt")
    monkeypatch.setattr(meta_gradient, "_seconds", lambda *_: pytest.fail("a second trial"))
    again = build(config(*SHORT, "chunk_size=auto", "trainer.max_steps=6"))
    again.trainer.fit(again.learner, again.stream, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.learner.gradient.chunk_size == 6


def test_falls_back_where_the_compiler_is_missing(monkeypatch, caplog):
    algorithm, take = llama()

    def compile(function, dynamic, options):
        def broken(*_):
            raise RuntimeError("no C++ compiler\nand more")

        return broken

    monkeypatch.setattr(torch, "compile", compile)
    found = MetaGradient(algorithm, chunk_size=3)
    found.prepare(meta_gradient.COMPILE_FROM_STEPS)
    batch = episodes(Gaussian(0.5), (2,), 2, tasks=7)
    assert_equal(found(Meta(initial(algorithm.model), {}), batch), take(chunk_size=3), rtol=0, atol=0)
    assert caplog.text.count("torch.compile is not available here (no C++ compiler)") == 1
    forced = MetaGradient(algorithm, compile=True)
    forced.prepare(1)
    with pytest.raises(RuntimeError, match="no C"):
        forced(Meta(initial(algorithm.model), {}), batch)


@pytest.mark.parametrize(("compile", "steps"), [(False, 10**6), ("auto", meta_gradient.COMPILE_FROM_STEPS - 1)])
def test_does_not_compile_where_it_does_not_pay(monkeypatch, compile, steps):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    algorithm, _ = llama()
    gradient = MetaGradient(algorithm, compile=compile)
    gradient.prepare(steps)
    gradient(Meta(initial(algorithm.model), {}), episodes(Gaussian(0.5), (2,), 2))


def test_says_that_more_steps_take_longer_to_compile():
    batch, images = episodes(Gaussian(0.5), (2,), 2), episodes(Categorical(2), image_shape("stride"), 2)
    gradients = [MetaGradient(llama(inner_steps=steps)[0], compile=True) for steps in (1, 5)]
    assert [gradient.about_to_compile(batch) for gradient in gradients] == [None, None]
    for gradient in gradients:
        gradient.prepare(1)
    one, five = (gradient.about_to_compile(batch) for gradient in gradients)
    assert 2 * one < five < 5 * one
    assert gradients[-1].about_to_compile(images) > five
