"""Brute force to compare the package with: plain autograd loops, dense Jacobians, dense P x P matrices, all in float64.

Nothing here uses vmap, the dual form, square roots of Lambda, or layer inputs. Parameters are dicts; a vector of all of
them is joined in the dict's order.
"""

import copy
import math
import weakref

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from meta_exp.adaptation import Meta, adapt, path
from meta_exp.algorithms import LLAMA
from meta_exp.curvature import KFAC, Diagonal, LastLayer
from meta_exp.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian, Poisson
from meta_exp.models import MLP, Affine, BatchNorm, Conv4, ResNet12
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.training.meta_gradient import MetaGradient


def assert_equal(actual, expected, rtol=1e-9, atol=1e-10):
    """Assert that tensors, or dicts of tensors, agree almost to the last bit of float64."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def mlp(outputs=1, widths=(5, 4), inputs=2, seed=0):
    """A small float64 MLP."""
    torch.manual_seed(seed)
    return MLP((inputs,), outputs, widths).double()


def conv4(norm="batch", downsample="stride", outputs=3, seed=0, filters=8):
    """A small float64 Conv4 whose biases, scales and shifts are not at their initial ones and zeros."""
    torch.manual_seed(seed)
    model = Conv4(image_shape(downsample), outputs, filters=filters, downsample=downsample, norm=norm).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def resnet12(outputs=3, seed=0):
    """A tiny float64 ResNet12 whose scales and shifts are not at their initial ones and zeros."""
    torch.manual_seed(seed)
    model = ResNet12((1, 16, 16), outputs, channels=(1, 2, 2, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def image_shape(downsample):
    """The smallest image of which the last norm still sees 2 x 2 positions."""
    return (1, 17, 17) if downsample == "stride" else (1, 16, 16)


def initial(model):
    """A copy of the model's parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def vector(params):
    """All parameters as one vector [P]."""
    return torch.cat([p.reshape(-1) for p in params.values()])


def unvector(v, like):
    """Undo ``vector``."""
    parts = v.split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for part, (name, p) in zip(parts, like.items(), strict=True)}


def examples(likelihood, shape, points, outputs, dtype=torch.double):
    """Random inputs of ``shape`` [..., N, *features] with targets for a network of that many ``outputs``."""
    x = torch.randn(*points, *shape, dtype=dtype)
    if isinstance(likelihood, Poisson):
        return Examples(x, torch.poisson(torch.full((*points, outputs), 2.0, dtype=dtype)))
    if isinstance(likelihood, HeteroscedasticGaussian):
        outputs //= 2
    if isinstance(likelihood, Categorical):
        return Examples(x, torch.randint(outputs, points))
    return Examples(x, torch.randn(*points, outputs, dtype=dtype))


def unlabelled(x):
    """Examples for structures that need no targets, as the GGN's."""
    return Examples(x, None)


def episodes(likelihood, shape, outputs, tasks=2, support=4, query=3, seed=1, dtype=torch.double):
    """A meta-batch of random tasks."""
    torch.manual_seed(seed)
    return Episode(*(examples(likelihood, shape, (tasks, n), outputs, dtype) for n in (support, query)))


def task(batch, i=0):
    """Task ``i`` of a meta-batch."""
    return Episode(*(Examples(e.x[i], e.y[i]) for e in batch))


def vmapped_gradient(algorithm, theta, batch, hyper=None):
    """The gradient in theta that training takes."""
    return MetaGradient(algorithm)(Meta(theta, hyper or {}), batch)[1]


def objective_of(algorithm, theta, hyper, episode):
    """The objective of one task, and its logs, as a function of theta and the hyper-parameters."""
    meta = Meta(theta, hyper)
    return algorithm.objective(list(path(algorithm, episode.support, meta, algorithm.inner_steps)), episode, meta)


def gradcheck(algorithm, meta, episode):
    """Whether the objective's derivatives in theta and every learned value are those of differences."""
    keys = list(meta.hyper)

    def objective(v, *values):
        here = meta._replace(theta=unvector(v, meta.theta), hyper=dict(zip(keys, values, strict=True)))
        states = list(path(algorithm, episode.support, here, algorithm.inner_steps))
        return algorithm.objective(states, episode, here)[0]

    inputs = [vector(meta.theta), *meta.hyper.values()]
    return torch.autograd.gradcheck(objective, [v.detach().clone().requires_grad_() for v in inputs], fast_mode=True)


def adapted(algorithm, theta, support, steps):
    """theta_i after ``steps`` steps."""
    return adapt(algorithm, support, Meta(theta, {}), steps)


def starts(learned):
    """The tensors of learned values as training begins with them."""
    return {name: entry.start for name, entry in learned.items()}


# The loop: torch.autograd alone


def loop_gradient(algorithm, theta, batch, model=None, known=()):
    """Mean over tasks, one after another, of the gradient of ``loop_objective``."""
    gradients = []
    for i in range(len(batch.query.y)):
        leaves = {name: p.detach().clone().requires_grad_() for name, p in theta.items()}
        objective = loop_objective(algorithm, leaves, task(batch, i), model or algorithm.model, known)
        found = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
    return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in theta}


def loop_objective(algorithm, theta, episode, model, known=()):
    """The meta-objective of one task, written out; ``theta`` requires gradients, ``model`` runs the forward passes.

    Parameters named in ``known`` neither adapt nor enter the curvature.
    """
    theta_i = loop_adapt(algorithm, theta, episode.support, model, known)
    total = nll(algorithm.likelihood, functional_call(model, theta_i, (episode.query.x,)), episode.query.y)
    if isinstance(algorithm, LLAMA):
        tau, x = algorithm.curvature.prior_precision, getattr(episode, algorithm.data).x
        log_det = loop_log_det(algorithm.curvature, algorithm.likelihood, model, theta_i, x, tau, known)
        total = total + algorithm.eta * log_det
        if algorithm.prior_term:
            total = total + tau / 2 * (vector(theta_i) - vector(theta)).square().sum()
    return total / len(episode.query.y)


def loop_adapt(algorithm, theta, support, model, known=()):
    """theta_i by gradient steps whose graph is kept in second order."""
    moving = [name for name in theta if name not in known]
    for _ in range(algorithm.inner_steps):
        outputs = functional_call(model, theta, (support.x,))
        if isinstance(algorithm.likelihood, Gaussian):
            loss = F.mse_loss(outputs, support.y)
        else:
            loss = nll(algorithm.likelihood, outputs, support.y) / support.y.numel()
        wanted = [theta[name] for name in moving]
        gradients = torch.autograd.grad(loss, wanted, create_graph=not algorithm.first_order)
        stepped = {name: theta[name] - algorithm.inner_lr * g for name, g in zip(moving, gradients, strict=True)}
        theta = {name: stepped.get(name, p) for name, p in theta.items()}
    return theta


def loop_log_det(curvature, likelihood, model, params, x, tau, known=()):
    """The log det ratio of a structure, with the Jacobian row by row."""
    if isinstance(curvature, KFAC):
        places = unvector(torch.arange(vector(params).numel()), params)
        left_out = {int(place) for name in known for place in places[name].flatten()}
        blocks = [block for place, block in kfac_blocks(likelihood, model, params, x) if int(place[0]) not in left_out]
        ratios = [torch.eye(len(block)).double() + block / tau for block in blocks]
        return sum(torch.linalg.slogdet(ratio).logabsdet for ratio in ratios)
    names = list(params)[-2:] if isinstance(curvature, LastLayer) else list(params)
    names = [name for name in names if name not in known]
    outputs = functional_call(model, params, (x,))
    wanted = [params[name] for name in names]
    rows = [torch.autograd.grad(f, wanted, create_graph=True) for f in outputs.flatten()]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    weights = torch.block_diag(*output_hessian(likelihood, outputs))
    if isinstance(curvature, Diagonal):
        return ((jacobian * (weights @ jacobian)).sum(0) / tau).log1p().sum()
    # Sylvester's identity
    return torch.linalg.slogdet(torch.eye(len(rows)).double() + weights @ jacobian @ jacobian.T / tau).logabsdet


def kfac_blocks(likelihood, model, params, x):
    """K-FAC's block of the curvature of each layer, with its entries' places in the vector of all parameters.

    Output gradients of every output of every point, patches position by position, Lambda itself, torch.kron.
    """
    params = {name: p if p.requires_grad else p.clone().requires_grad_() for name, p in params.items()}
    seen = {}
    handles = [
        module.register_forward_hook(lambda _m, i, o, name=name: seen.__setitem__(name, (i[0], o)))
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
    ]
    outputs = functional_call(model, params, (x,))
    for handle in handles:
        handle.remove()
    weights = torch.block_diag(*output_hessian(likelihood, outputs))
    places = unvector(torch.arange(vector(params).numel()), params)

    def gradients(of):
        return torch.stack([torch.autograd.grad(f, of, create_graph=True)[0] for f in outputs.flatten()])

    blocks = []
    for name, (a, o) in seen.items():
        module = model.get_submodule(name)
        if isinstance(module, Affine):
            for part in (f"{name}.weight", f"{name}.bias"):
                g = gradients(params[part])
                blocks.append((places[part], torch.diag((g * (weights @ g)).sum(0))))
            continue
        if isinstance(module, nn.Conv2d):
            stride, kernel, padded = module.stride[0], module.kernel_size[0], F.pad(a, [module.padding[0]] * 4)
            a = torch.cat(
                [
                    padded[:, :, stride * i : stride * i + kernel, stride * j : stride * j + kernel].flatten(1)
                    for i in range(o.shape[2])
                    for j in range(o.shape[3])
                ]
            )
        if module.bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1).double()], 1)
        g = gradients(o).flatten(3) if o.ndim == 4 else gradients(o)[..., None]
        b = torch.einsum("rnos,rq,qnps->op", g, weights, g)
        place = places[f"{name}.weight"].flatten(1)
        if module.bias is not None:
            place = torch.cat([place, places[f"{name}.bias"][:, None]], 1)
        blocks.append((place.flatten(), torch.kron(b.contiguous(), a.T @ a / len(a))))
    return blocks


def nll(likelihood, outputs, y):
    """-log p(y | f), summed over points."""
    if isinstance(likelihood, Categorical):
        return -outputs.log_softmax(-1)[torch.arange(len(y)), y].sum()
    if isinstance(likelihood, Poisson):
        return -torch.distributions.Poisson(outputs.exp()).log_prob(y).sum()
    if isinstance(likelihood, HeteroscedasticGaussian):
        d = y.shape[-1]
        return -torch.distributions.Normal(outputs[:, :d], outputs[:, d:].exp().sqrt()).log_prob(y).sum()
    sigma = likelihood.sigma_noise
    return (((outputs - y) / sigma) ** 2 / 2 + math.log(sigma * math.sqrt(2 * math.pi))).sum()


def output_hessian(likelihood, outputs):
    """Lambda [N, C, C], the Hessian of -log p(y | f) in f on average over y given f."""
    if isinstance(likelihood, Categorical):
        p = outputs.softmax(-1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    if isinstance(likelihood, Poisson):
        return torch.diag_embed(outputs.exp())
    if isinstance(likelihood, HeteroscedasticGaussian):
        _, log_variance = outputs.chunk(2, -1)
        return torch.diag_embed(torch.cat([1 / log_variance.exp(), 0 * log_variance + 0.5], -1))
    return torch.eye(outputs.shape[1]).double().expand(len(outputs), -1, -1) / likelihood.sigma_noise**2


# Dense matrices


def dense_kfac(likelihood, model, params, x, tau):
    """H = tau I + K-FAC's blocks, [P, P]."""
    precision = tau * torch.eye(vector(params).numel()).double()
    for place, block in kfac_blocks(likelihood, model, params, x):
        precision[place[:, None], place] += block.detach()
    return precision


def dense_jacobian(model, params, x):
    """The outputs' Jacobian [N, C, P] by reverse mode, whole batch at once (so batch statistics may couple it)."""
    jacobian = jacrev(lambda v: functional_call(model, unvector(v, params), (x,)))
    return jacobian(vector(params))


def dense_precision(likelihood, model, params, x, tau):
    """H = tau I + sum_n J_n^T Lambda_n J_n, [P, P]."""
    jacobian = dense_jacobian(model, params, x)
    weights = output_hessian(likelihood, functional_call(model, params, (x,)))
    ggn = torch.einsum("ncp,ncd,ndq->pq", jacobian, weights, jacobian)
    return ggn + tau * torch.eye(len(ggn)).double()


def dense_log_det_ratio(precision, tau):
    """log det H - P log tau by LU of the whole matrix."""
    return torch.linalg.slogdet(precision).logabsdet - len(precision) * math.log(tau)


def noise_covariance(posterior, params):
    """A A^T where a draw is A e: A is built from unit vectors e of noise, one number for each of ``params``."""
    eye = torch.eye(vector(params).numel()).double()
    parts = eye.split([p.numel() for p in params.values()], dim=1)
    noise = {name: part.view(-1, *p.shape) for part, (name, p) in zip(parts, params.items(), strict=True)}
    draws = vmap(posterior.sample)(noise)
    a = torch.cat([draws[name].flatten(1) for name in params], 1)
    return a.T @ a


class TorchBatchNorm(nn.Module):
    """PyTorch's own batch norm on batch statistics, with the parameter names of ours."""

    def __init__(self, norm):
        super().__init__()
        self.affine, self.eps = norm.affine, norm.eps

    def forward(self, x):
        return F.batch_norm(x, None, None, self.affine.weight, self.affine.bias, training=True, eps=self.eps)


def with_torch_norms(model):
    """A copy of a network with every BatchNorm replaced by PyTorch's."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm):
                setattr(module, name, TorchBatchNorm(child))
    return model


CASES = (
    {
        "mlp-gaussian": (lambda: mlp(outputs=2), (2,), 2, Gaussian(0.5)),
        "mlp-categorical": (lambda: mlp(outputs=3), (2,), 3, Categorical()),
        "mlp-heteroscedastic": (lambda: mlp(outputs=4), (2,), 4, HeteroscedasticGaussian()),
        "mlp-poisson": (lambda: mlp(outputs=2), (2,), 2, Poisson()),
    }
    | {
        f"conv4-{norm}-{downsample}": (
            lambda norm=norm, downsample=downsample: conv4(norm, downsample),
            image_shape(downsample),
            3,
            Categorical(),
        )
        for norm in ("batch", "group", "none")
        for downsample in ("stride", "max_pool")
    }
    | {"resnet12-batch": (resnet12, (1, 16, 16), 3, Categorical())}
)
"""Name -> (make the model, input shape, outputs, likelihood)."""
LIBRARY_CASES = [name for name, (*_, likelihood) in CASES.items() if isinstance(likelihood, Gaussian | Categorical)]
"""Those whose loss other libraries have."""


class LiveBytes(TorchDispatchMode):
    """The bytes of tensors made inside and alive, and the most that there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.seen:
                self.seen.add(key)
                self.now += tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self.gone, key, tensor.untyped_storage().nbytes())
        return out

    def gone(self, key, size):
        self.seen.discard(key)
        self.now -= size
