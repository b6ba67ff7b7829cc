r"""The learner: theta, and the meta-gradient that Lightning's optimizer steps along.

The meta-gradient is computed functionally and handed to automatic optimisation through the objective's value, so that
clipping, accumulation and data-parallel reduction work as they do for any LightningModule.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.func import vmap
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map, tree_map_only

from meta_exp.adaptation import Meta, Noise, Params, adapt, whole_path
from meta_exp.algorithms import Algorithm
from meta_exp.config.checks import require, require_at_most
from meta_exp.curvature import Posterior
from meta_exp.hyper import Hyper, in_log_space, shown
from meta_exp.prediction import KINDS
from meta_exp.scoring.conformal import Conformal
from meta_exp.scoring.metrics import defined, failed_tasks
from meta_exp.scoring.task import Score, Scores, evaluate
from meta_exp.tasks.episode import Episode, Examples
from meta_exp.tasks.foreign import Foreign
from meta_exp.training.data import EvaluationBatches, TaskStream
from meta_exp.training.meta_gradient import MetaGradient
from meta_exp.training.schedule import Cosine

log = logging.getLogger(__name__)
STEPS, DRAWS, FASTEST = 10**4, 10**4, 1e3  # at most
COLLAPSE = 0.01  # of the log det, above its floor
TRAINING, EVALUATION = 0, 1  # in the keys of noise


class Adapted(NamedTuple):
    """A task as one predictive sees it: theta_i, the posterior around it, and the values that it is served with."""

    params: Params
    posterior: Posterior | None
    meta: Meta


class Learner(LightningModule):
    """Meta-parameters theta with an algorithm to train them and a curvature to predict with.

    Args:
        algorithm: gives a task's objective and adapts to a task; its model's parameters are theta.
        optimizer: maps parameters to an optimizer.
        schedule: of the optimizer's learning rates; None for constant ones.
        evaluation_steps: inner steps in validation and test; none where training takes none.
        predictives: which of map, sample, linearized to score; those that the algorithm does not offer are left out.
        samples: posterior draws for the predictives that need them.
        hyper_lr: learning rate of what is learned beside theta; None for the optimizer's. In log space Adam's 0.001
            crawls.
        chunk_size: tasks whose gradient is taken at once; None for the whole meta-batch, ``auto`` for a trial.
        compile: the meta-gradient; ``auto`` compiles runs that are long enough.
        checkpoint_steps: keep one inner step at a time in memory, and compute each twice.
        each_step: score the map after each step of the path, which takes as many passes over the query set; else at its
            ends.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        *,
        schedule: Cosine | None = None,
        evaluation_steps: int = 10,
        predictives: Sequence[str] = KINDS,
        samples: int = 30,
        hyper_lr: float | None = None,
        chunk_size: int | Literal["auto"] | None = None,
        compile: bool | Literal["auto"] = "auto",
        checkpoint_steps: bool = False,
        each_step: bool = True,
        scores: Mapping[str, Score] | None = None,
    ) -> None:
        require(evaluation_steps >= 1, "evaluation_steps", "at least 1", evaluation_steps)
        require_at_most(STEPS, "evaluation_steps", evaluation_steps)
        require(samples >= 1, "samples", "at least 1", samples)
        require_at_most(DRAWS, "samples", samples)
        require(hyper_lr is None or hyper_lr > 0, "hyper_lr", "null or a learning rate > 0", hyper_lr)
        require_at_most(FASTEST, "hyper_lr", hyper_lr or 0.0)
        for kind in predictives:
            require(kind in KINDS, "predictives", f"some of {', '.join(KINDS)}", kind)
        offered = [kind for kind in KINDS if kind in predictives and kind in algorithm.predictives]
        expected = f"one at least of {', '.join(algorithm.predictives)}, which this algorithm has here"
        require(bool(offered), "predictives", expected, list(predictives))
        super().__init__()
        self.model = algorithm.model
        self.algorithm = algorithm.exact()  # for evaluation and production; the gradient has the one that trains
        self.optimizer = optimizer
        self.schedule = schedule
        # linearised at theta, as without inner steps, is not what it was trained for after some
        self.evaluation_steps = evaluation_steps if algorithm.inner_steps else 0
        self.predictives = [kind for kind in dict.fromkeys(predictives) if kind in algorithm.predictives]
        self.samples = samples
        self.each_step = each_step
        self.scores = dict(scores or {})
        self.hyper_lr = hyper_lr
        self.gradient = MetaGradient(algorithm, chunk_size, compile, checkpoint_steps)
        self.learned = algorithm.hyperparameters()
        self.hyper = nn.ParameterDict({_key(name): entry.start for name, entry in self.learned.items()})
        self._theta = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self._tuned: Hyper = {}
        self.served: dict[str, Hyper] = {}
        self.conformal: dict[str, Conformal] = {}
        self._collapsed = False
        self._scores: list[dict[str, Tensor]] = []

    def meta(self, progress: float = 1.0) -> Meta:
        """Return theta and the learned hyper-parameters, detached, by name; parameters that are frozen are left out."""
        theta = {name: value.detach() for name, value in self._theta.items()}
        hyper = {name: self.hyper[_key(name)].detach() for name in self.learned} | self._tuned
        # filled where it is: a copy from the CPU would wait for all that a GPU has to do before
        return Meta(theta, hyper, progress=torch.full((), progress, device=self.device))

    def shown(self) -> dict[str, float]:
        """Return what was learned beside theta, by the names that people know."""
        return {name: float(value) for name, value in shown(self.learned, self.meta().hyper).items()}

    @property
    def prior_precision(self) -> float | None:
        """The tau of posteriors, fixed, learned or tuned; None without a curvature."""
        curvature = self.algorithm.curvature
        return None if curvature is None else float(curvature.tau(self.meta().hyper))

    def set_prior_precision(self, tau: float) -> None:
        """Take ``tau`` for the posteriors of all further evaluations; what was trained stays."""
        entry = in_log_space("prior_precision", torch.tensor(tau, dtype=torch.float64, device=self.device))
        self._tuned = {name: value.start for name, value in entry.items()}

    def meta_gradient(
        self, episodes: Episode, tasks: float | None = None, progress: float = 0.0, noise: Noise = None
    ) -> tuple[Tensor, Params, Hyper, dict[str, Tensor]]:
        """Return the objective, its gradients in theta and hyper-parameters, and logged scalars: see MetaGradient."""
        return self.gradient(self.meta(progress)._replace(noise=noise), episodes, tasks)

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Return the objective, with the meta-gradient behind it."""
        objective, gradients, logs, noise = self._gradients(batch, batch_idx)
        logging_step = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        # a look at the value waits for a GPU, so it is taken every step on the CPU only
        if logging_step or self.device.type == "cpu":
            self._stop_if_not_finite(objective, gradients, batch, noise)
        if logging_step:
            tasks = self._tasks_a_process(batch)
            scores = self.evaluate(batch, self.algorithm.inner_steps, predictives=[], of_objective=True).each
            logs |= {name: score.sum() / tasks for name, score in scores.items() if name not in logs}
            self._warn_if_collapsed(scores)
            reduced = [self.trainer.strategy.reduce(gradient.clone()) for gradient in gradients]
            logs |= {"objective": objective, "gradient_norm": torch.stack(torch._foreach_norm(reduced)).norm()}
            logs |= shown(self.learned, self.meta().hyper)
            values = {f"train/{name.removeprefix('map/')}": value.detach() for name, value in logs.items()}
            self.log_dict(values, sync_dist=True)
        parameters = self._trained()
        return _WithGradient.apply(objective, len(parameters), *parameters, *gradients)

    def take_gradient(self, batch: Episode, batch_idx: int) -> Tensor:
        """Return the objective and leave the meta-gradient with the parameters, as a turn of Lightning's does."""
        objective, gradients, _, noise = self._gradients(batch, batch_idx)
        if self.device.type == "cpu":
            self._stop_if_not_finite(objective, gradients, batch, noise)
        for parameter, gradient in zip(self._trained(), gradients, strict=True):
            parameter.grad = gradient
        return objective

    def _gradients(self, batch: Episode, batch_idx: int) -> tuple[Tensor, list[Tensor], dict[str, Tensor], Noise]:
        """Return the objective, its gradients in what is trained, in its order, logged scalars and the noise."""
        trainer, accumulate = self.trainer, self.trainer.accumulate_grad_batches
        number = self.global_step * accumulate + batch_idx % accumulate
        key = (TRAINING, trainer.datamodule.seed, number)  # type: ignore[attr-defined]
        noise = self.path_noise(batch, key, trainer.global_rank, trainer.world_size)
        progress = self.global_step / trainer.max_steps
        tasks = self._tasks_a_process(batch)
        objective, gradient, hyper_gradient, logs = self.meta_gradient(batch, tasks, progress, noise)
        return objective, [*gradient.values(), *hyper_gradient.values()], logs, noise

    def _trained(self) -> list[nn.Parameter]:
        return [*self._theta.values(), *(self.hyper[_key(name)] for name in self.learned)]

    def _tasks_a_process(self, batch: Episode) -> float:
        """Return what a process divides its sums over tasks by, for the processes' average to be the mean over all M.

        That is M / W for W processes, also where W does not divide M and their numbers of tasks differ by one.
        """
        ranks = self.trainer.world_size
        if ranks == 1:
            return len(batch.query.y)
        return self.trainer.datamodule.family.meta_batch / ranks  # type: ignore[attr-defined]

    def evaluate(
        self,
        episodes: Episode,
        steps: int,
        predictives: Sequence[str],
        seed: int = 0,
        foreign: Foreign | None = None,
        of_objective: bool = False,
        scored: Collection[int] | None = None,
    ) -> Scores:
        """Score each of T tasks; the values have a leading T. Posterior draws are a function of ``seed``.

        ``of_objective`` takes the curvature of the data that the objective takes it of, in place of the support set's;
        ``scored`` are the steps of the path that are scored beside its end: None for what ``each_step`` says.
        """
        scored = (None if self.each_step else (0, steps)) if scored is None else scored
        meta = self.meta()._replace(noise=self.path_noise(episodes, (EVALUATION, seed)))
        served = {kind: self.served[kind] for kind in predictives if kind in self.served}
        score = partial(evaluate, self.algorithm, steps=steps, predictives=predictives, served=served, own=self.scores)
        score = partial(score, conformal=self.conformal, of_objective=of_objective, scored=scored)
        draws = self.draws(episodes, seed) if any(kind != "map" for kind in predictives) else None
        if self.gradient.at_once == 1:  # vmap of one task costs a convolution more than it does by itself
            given = (meta.noise, episodes, draws, foreign)
            tasks = (tree_map_only(Tensor, partial(_of_task, i), given) for i in range(len(episodes.query.y)))
            each = [score(meta._replace(noise=noise), *others) for noise, *others in tasks]
            return tree_map(lambda *values: torch.stack(values), *each)
        shared = Meta(None, None, None if meta.noise is None else 0, None)  # type: ignore[arg-type]
        in_dims = (shared, 0, None if draws is None else 0, None if foreign is None else 0)
        return vmap(score, in_dims, chunk_size=self.gradient.at_once)(meta, episodes, draws, foreign)

    def adapt_task(self, support: Examples, noise: Noise, steps: int) -> dict[str, Adapted]:
        """Adapt to one task, and return what each predictive that the algorithm offers goes by."""
        algorithm, meta = self.algorithm, self.meta()._replace(noise=noise)
        params = adapt(algorithm, support, meta, steps)
        trained = Adapted(params, algorithm.posterior(params, support, meta), meta)
        found = dict.fromkeys(algorithm.predictives, trained)
        for kind in found.keys() & self.served.keys():
            here = meta._replace(hyper=meta.hyper | self.served[kind])
            end = adapt(algorithm, support, here, steps) if algorithm.steps_by_hyper else params
            found[kind] = Adapted(end, algorithm.posterior(end, support, here), here)
        return found

    def draws(self, episodes: Episode, seed: int) -> Noise:
        """Draw the noise of ``samples`` predictive draws for each of T tasks, [T, samples, ...], or None."""
        tasks, points = episodes.support.y.shape[:2]
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.algorithm.draws(generator, (tasks, self.samples), self.meta().theta, points)

    def path_noise(self, episodes: Episode, key: tuple[int, ...], rank: int = 0, ranks: int = 1) -> Noise:
        """Draw the noise of the paths of T tasks, [T, ...], or None; that of a task is a function of key and place.

        The tasks are those at the places rank, rank + ranks, ... of a meta-batch.
        """
        if type(self.algorithm).noise is Algorithm.noise:  # at each step of training, so it is seen at a glance
            return None
        theta = self.meta().theta
        tasks, points = episodes.support.y.shape[:2]
        noise = self.algorithm.training_noise if key[0] == TRAINING else self.algorithm.noise

        def draw(place: int) -> Noise:
            seed = np.random.SeedSequence((*key, place)).generate_state(1, np.uint64)[0]
            return noise(torch.Generator().manual_seed(int(seed >> 1)), theta, points)

        if draw(0) is None:
            return None
        return tree_map(
            lambda *each: torch.stack(each).to(self.device), *map(draw, range(rank, rank + tasks * ranks, ranks))
        )

    def on_fit_start(self) -> None:
        """Forget what was fitted after training, and make the meta-gradient ready for the run."""
        self._tuned, self.served, self.conformal = {}, {}, {}
        self.gradient.prepare(self.trainer.max_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the chunks that a trial has found: a continued run has to retrace the same bits."""
        checkpoint["chunk_size"] = self.gradient.chunk_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the chunks of an earlier part of this run."""
        if self.gradient.chunk_size == "auto":
            self.gradient.chunk_size = checkpoint["chunk_size"]

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        """Score validation tasks by their loss and metric after adaptation."""
        self._scores.append(self._validate(batch))

    def _validate(self, batch: Episode) -> dict[str, Tensor]:
        return self.evaluate(batch, self.evaluation_steps, self.algorithm.validated, scored=()).each

    @torch.no_grad()
    def validation_scores(self, stream: TaskStream) -> list[str]:
        """Return the names of the scores that a validation logs, found by one task."""
        [one] = EvaluationBatches(stream.family, "validation", 1)
        one = tree_map(lambda value: value.to(self.device), one)
        return [f"validation/{name}" for name in self._validate(one)]

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation tasks."""
        scores = {name: torch.cat([batch[name] for batch in self._scores]) for name in self._scores[0]}
        self._scores = []
        self._stop_if_all_failed(scores)
        means = {f"validation/{name}": defined(name, scores).mean() for name in scores}
        self.log_dict(means, sync_dist=True)  # every process scores all the tasks, so that this changes nothing

    def configure_optimizers(self) -> Any:
        """Return the optimizer of theta and what is learned beside it, and the schedule of its rates, if any."""
        groups: Any = self.parameters()
        numbers = [self.hyper[_key(name)] for name, entry in self.learned.items() if not entry.weights]
        if self.hyper_lr is not None and numbers:
            weights = [self.hyper[_key(name)] for name, entry in self.learned.items() if entry.weights]
            groups = [{"params": [*self.model.parameters(), *weights]}, {"params": numbers, "lr": self.hyper_lr}]
        optimizer = self.optimizer(groups)
        if self.schedule is None:
            return optimizer
        factor = partial(self.schedule.factor, steps=self.trainer.max_steps)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]

    def _warn_if_collapsed(self, scores: dict[str, Tensor]) -> None:
        """Say once that the outputs depend on nothing but their bias; the log det rewards that."""
        if self._collapsed or "log_det" not in scores:
            return
        log_det, floor = scores["log_det"].mean(), scores["log_det_floor"].mean()
        self._collapsed = bool(log_det < (1 + COLLAPSE) * floor)
        if self._collapsed:
            remedy = "a smaller algorithm.eta, likelihood.learned=true, or a larger curvature.prior_precision"
            if self.algorithm.holds_to_theta:  # a larger one would leave adaptation nothing to gain
                remedy = "a smaller curvature.prior_precision, such as 10, or algorithm.prior_term=false"
                remedy += " and hyper_lr=0.02 for the learned one" if "log_prior_precision" in self.learned else ""
            log.warning(
                "step %d: the network has collapsed: log det is %.4g, that of outputs that depend on their bias alone; "
                "try %s",
                self.global_step,
                log_det,
                remedy,
            )

    def _stop_if_all_failed(self, scores: dict[str, Tensor]) -> None:
        """Say of which validation tasks a prediction is left, and stop where that is none: no checkpoint could be best.

        Raises:
            FloatingPointError: a predictive has failed on all validation tasks.
        """
        trains, evaluates = self.algorithm.inner_steps, self.evaluation_steps
        fewer = f"evaluation_steps={trains}, as many as training takes, or " if evaluates > trains >= 1 else ""
        for kind, failed in failed_tasks(scores).items():
            tasks = len(scores["loss"])
            text = (
                f"{kind} has no prediction (NaN) after {evaluates} steps for {len(failed)} of {tasks} validation tasks"
            )
            if len(failed) == tasks:
                stronger = "" if kind == "map" else ", or a larger curvature.prior_precision"
                remedy = f"try {fewer}a smaller algorithm.inner_lr{stronger}"
                raise FloatingPointError(f"step {self.global_step}: {text}; {remedy}")
            log.warning("step %d: %s; the mean is NaN", self.global_step, text)

    def _stop_if_not_finite(self, objective: Tensor, gradients: list[Tensor], batch: Episode, noise: Noise) -> None:
        norms = torch._foreach_norm(gradients)
        if self.trainer.world_size == 1 and self.device.type == "cpu":  # numbers one by one are sooner added up there
            total = float(objective) + sum(map(float, norms))
        else:  # of all processes, so that none goes on and waits for one that stopped
            total = float(self.trainer.strategy.reduce(objective + torch.stack(norms).norm(), reduce_op="sum"))
        if isfinite(total):
            return
        norm = torch.stack(norms).norm()
        x, y = batch.support
        reason, remedy = self._what_diverged(batch, noise)
        raise FloatingPointError(
            f"step {self.global_step}: the objective is {objective.item():.4g}, its gradient norm {norm.item():.4g}: "
            f"{reason}; this meta-batch of {len(x)} tasks has x in [{x.min():.4g}, {x.max():.4g}] and y in "
            f"[{y.min():.4g}, {y.max():.4g}]. The last good weights are in last.ckpt. Try {remedy}."
        )

    @torch.no_grad()
    def _what_diverged(self, batch: Episode, noise: Noise) -> tuple[str, str]:
        """Return what of a step lost its numbers, and what helps: the outer loop, the inner one, or what follows.

        The tasks' outputs along the path tell: those at theta itself are of the outer loop alone.
        """
        algorithm, meta = self.algorithm, self.meta()._replace(noise=noise)

        def finite(meta: Meta, support: Examples) -> Tensor:
            states = whole_path(algorithm, support, meta, algorithm.inner_steps)
            return torch.stack([algorithm.outputs(params, support.x).isfinite().all() for params in states])

        shared = Meta(None, None, None if noise is None else 0, None)  # type: ignore[arg-type]
        whole = vmap(finite, (shared, 0), chunk_size=self.gradient.at_once)(meta, batch.support).all(0).tolist()
        outer = "a smaller optimizer.lr"
        if not whole[0]:
            return "the outputs at the meta-parameters are not finite", f"{outer} or trainer.gradient_clip_val=1"
        if not all(whole):
            reason = f"the inner loop diverges, in step {whole.index(False)} of {algorithm.inner_steps}"
            inner = "a smaller algorithm.inner_lr, fewer algorithm.inner_steps or a larger likelihood.sigma_noise"
            return reason, inner + (f"; or {outer}, where it began with the training" if self.global_step else "")
        remedy = "a larger curvature.prior_precision or likelihood.sigma_noise, a smaller algorithm.inner_lr"
        return "the inner loop is finite, what follows it is not", f"{remedy} or {outer}"


def _of_task(i: int, values: Tensor) -> Tensor:
    """Return task i's part; images with their channels last, which CPUs convolve and pool in half the time."""
    part = values[i]
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part


def _key(name: str) -> str:
    """Return the name of a learned value as PyTorch admits it for a parameter."""
    return name.replace(".", "/")


class _WithGradient(torch.autograd.Function):
    """The objective's value, whose backward hands over a gradient that is known already."""

    @staticmethod
    def forward(ctx: Any, objective: Tensor, count: int, *parameters_and_gradients: Tensor) -> Tensor:
        ctx.gradients = parameters_and_gradients[count:]
        return objective.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        parameters = [scale * gradient for gradient in ctx.gradients]
        return None, None, *parameters, *[None] * len(parameters)
