r"""The meta-gradient of a meta-batch: the mean over its tasks of grad_theta objective_i(theta).

Each task's gradient is taken by itself and the results are averaged, ``vmap(grad(task))``: never the gradient of a
vmapped mean. In the first inner step all tasks share theta, so that vmap makes one large product of it. The outermost
gradient is pulled back without a graph of its own, since nobody differentiates it again: that takes half the
memory of ``torch.func.grad`` and less time.

What changes nothing but time, memory and rounding: the tasks may be taken in chunks, which bounds the memory and suits
the processor's caches; the gradient of a chunk may be compiled, and the cores of a CPU then share out its tasks; and of
the K inner steps the parameters theta^k alone may be kept, each step being computed anew on the way back,

    c_K = d objective / d theta_i,    c_k = (d theta^{k+1} / d theta^k)^T c_{k+1},    gradient = c_0 + what theta adds
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial, reduce
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_map

from meta_exp.adaptation import Params
from meta_exp.algorithms import MAML
from meta_exp.algorithms.maml import Logs
from meta_exp.config.checks import require
from meta_exp.likelihoods import Hyper
from meta_exp.tasks.episode import Episode

log = logging.getLogger(__name__)
logging.getLogger("torch._inductor.ir").setLevel(logging.ERROR)  # it tells of each operator that it calls by its name
COMPILE_FROM_STEPS = 2000  # about where the minute of compilation is earned back
WORSE = 1.25  # times the best time a task: where the trial of chunk sizes ends


class MetaGradient:
    """A function of theta, hyper-parameters and episodes.

    Args:
        algorithm: gives a task's objective.
        chunk_size: tasks whose gradient is taken at once; None for the whole meta-batch; ``auto`` for the fastest in a
            short trial on the first one, without compiling.
        compile: ``auto`` compiles runs that are long enough, and falls back where it cannot.
        checkpoint_steps: keep one inner step at a time in memory, and compute each twice.

    Attributes:
        compile_s: seconds that the first call took, if it compiled.
    """

    def __init__(
        self,
        algorithm: MAML,
        chunk_size: int | Literal["auto"] | None = None,
        compile: bool | Literal["auto"] = "auto",
        checkpoint_steps: bool = False,
    ) -> None:
        whole = chunk_size is None or chunk_size == "auto"
        require(whole or int(chunk_size) >= 1, "chunk_size", "null, auto or at least 1", chunk_size)  # type: ignore[arg-type]
        require(compile in (True, False, "auto"), "compile", "true, false or auto", compile)
        self.algorithm = algorithm
        self.chunk_size = chunk_size
        self.compile_wanted = compile
        self.checkpoint_steps = checkpoint_steps
        self.compile_s = 0.0
        self._of_chunk: Callable[..., Any] = self._eager

    @property
    def at_once(self) -> int | None:
        """The tasks taken at once, as far as it is known: None for all."""
        return None if self.chunk_size == "auto" else self.chunk_size

    def prepare(self, steps: int) -> None:
        """Make ready for a run of ``steps`` steps in all.

        It is compiled or not by the whole run, not by what is left of it: a continued run has to retrace the same bits.
        """
        if self.compile_wanted is True:
            self.compile()
        elif self.compile_wanted == "auto" and steps >= COMPILE_FROM_STEPS:
            self._of_chunk = self._compile_or_fall_back

    def compile(self) -> None:
        """Compile at the first use; raise there if that fails."""
        self._of_chunk = self._compile_first

    def __call__(
        self, theta: Params, hyper: Hyper, episodes: Episode, tasks: float | None = None
    ) -> tuple[Tensor, Params, Hyper, Logs]:
        """Return the objective, its gradients in theta and hyper-parameters, and logged scalars; means over tasks.

        ``tasks`` is what their sums are divided by, where that is not the number of ``episodes``.
        """
        count = len(episodes.query.y)
        if self.chunk_size == "auto":
            self.chunk_size = self._fastest(theta, hyper, episodes)
        cores = self._cores(episodes)
        size = (self.chunk_size or count) // cores
        parts = [_tasks(episodes, start, start + size) for start in range(0, count, size)]

        def take(part: Episode) -> Any:
            return self._of_chunk(theta, hyper, part, tasks or count)

        if cores > 1 and self.compile_s:  # the sum there too: here it would wake a thread that then spins for a while
            workers = _workers(cores)
            total = workers.submit(_sum, list(workers.map(take, parts))).result()
        else:
            total = _sum(map(take, parts))
        (gradient, hyper_gradient), (objective, logs) = total
        return objective, gradient, hyper_gradient, logs

    def _cores(self, episodes: Episode) -> int:
        """Return how many cores share out the tasks of a chunk evenly: of a CPU's, for code that is compiled.

        One core on a task of its own does more than two on the same, whose loops are short.
        """
        if self._of_chunk == self._eager or not self.chunk_size or episodes.query.y.device.type != "cpu":
            return 1
        return max(n for n in range(1, torch.get_num_threads() + 1) if int(self.chunk_size) % n == 0)

    def _eager(self, theta: Params, hyper: Hyper, episodes: Episode, tasks: float) -> Any:
        """Return what the tasks of a chunk contribute to means over ``tasks``."""
        gradient = partial(self._checkpointed if self.checkpoint_steps else self._plain, theta, hyper)
        if len(episodes.query.y) == 1:  # plain products of matrices are faster than batches of one
            return tree_map(lambda value: value / tasks, gradient(tree_map(lambda value: value[0], episodes)))
        return tree_map(lambda value: value.sum(0) / tasks, vmap(gradient)(episodes))

    def _plain(self, theta: Params, hyper: Hyper, episode: Episode) -> Any:
        """Return the gradients of one task in theta and hyper-parameters, its objective and its logs."""
        return _gradients(partial(self.algorithm.objective, episode=episode), theta, hyper)

    def _checkpointed(self, theta: Params, hyper: Hyper, episode: Episode) -> Any:
        """Return the same, with the steps' graphs one at a time."""
        *path, theta_i = self.algorithm.adapt(theta, episode.support, self.algorithm.inner_steps)
        objective = partial(self.algorithm.objective_at, episode=episode)
        (cotangent, direct, of_hyper), outcome = _gradients(objective, theta_i, theta, hyper)
        for params in reversed(path):
            [cotangent] = vjp(partial(self.algorithm.step, support=episode.support), params)[1](cotangent)
        return (tree_map(torch.add, cotangent, direct), of_hyper), outcome

    def _fastest(self, theta: Params, hyper: Hyper, episodes: Episode) -> int:
        """Try 1, 2, 4, ... tasks at once, and all, until more of them take more time a task."""
        count = len(episodes.query.y)
        best, seconds = 1, float("inf")
        for size in [*(2**k for k in range(count.bit_length()) if 2**k < count), count]:
            try:
                a_task = min(_seconds(self._eager, theta, hyper, _tasks(episodes, 0, size), size) for _ in range(3))
            except torch.OutOfMemoryError:
                break
            if a_task / size < seconds:
                best, seconds = size, a_task / size
            elif a_task / size > WORSE * seconds:
                break
        log.info("chunk_size=auto: %d of %d tasks at once, %.3g ms a task in the trial", best, count, 1e3 * seconds)
        return best

    def _compiled(self, cores: int) -> Callable[..., Any]:
        """Return the gradient of a chunk compiled for fixed shapes, trusting that only its arguments change.

        To ask the network, its hooks and the algorithm at each call whether they changed takes longer than a small
        network. PyTorch files what it compiled under the code object: a copy of it for each instance keeps them apart.
        What is to run beside others is one function in C++, which does not hold Python's lock.
        """
        code = MetaGradient._eager.__code__.replace()
        method = MethodType(FunctionType(code, globals()), self)
        options: dict[str, Any] = {"guard_filter_fn": _guards_of_arguments}
        if cores > 1:
            options |= {"cpp_wrapper": True, "cpp.threads": 1}
        return torch.compile(method, dynamic=False, options=options)

    def _compile_first(self, theta: Params, hyper: Hyper, episodes: Episode, tasks: float) -> Any:
        compiled = self._compiled(self._cores(episodes))
        started = time.perf_counter()
        part = compiled(theta, hyper, episodes, tasks)
        self.compile_s = time.perf_counter() - started
        log.info("meta-gradient compiled in %.0f s", self.compile_s)
        self._of_chunk = compiled
        return part

    def _compile_or_fall_back(self, theta: Params, hyper: Hyper, episodes: Episode, tasks: float) -> Any:
        try:
            return self._compile_first(theta, hyper, episodes, tasks)
        except Exception as error:  # whatever a compiler that is missing or broken raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("torch.compile is not available here (%s); training goes on without it", reason)
            self._of_chunk = self._eager
            return self._eager(theta, hyper, episodes, tasks)


@cache
def _workers(cores: int) -> ThreadPoolExecutor:
    """Return threads whose operations take one core each."""
    return ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))


def _gradients(objective: Callable[..., tuple[Tensor, Logs]], *arguments: Any) -> Any:
    """Return the gradients in all ``arguments``, and what ``objective`` returned."""
    value, pullback, logs = vjp(objective, *arguments, has_aux=True)  # type: ignore[misc]
    return pullback(torch.ones_like(value), retain_graph=False, create_graph=False), (value, logs)


def _sum(parts: Iterable[Any]) -> Any:
    """Add up what chunks contribute, in their order."""
    return reduce(partial(tree_map, torch.add), parts)


def _tasks(episodes: Episode, start: int, stop: int) -> Episode:
    return tree_map(lambda value: value[start:stop], episodes)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds that a call takes, what it starts on a GPU included."""
    started = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _guards_of_arguments(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type == "TENSOR_MATCH" or guard.name == "L['tasks']" for guard in guards]
