r"""The meta-gradient of a meta-batch: the mean over its tasks of grad_theta objective_i(theta).

Each task's gradient is taken by itself and the results are averaged, ``vmap(grad(task))``: never the gradient of a
vmapped mean. In the first inner step all tasks share theta, so that vmap makes one large product of it. The outermost
gradient is pulled back without a graph of its own, since nobody differentiates it again: that takes half the
memory of ``torch.func.grad`` and less time.

What changes nothing but time, memory and rounding: the tasks may be taken in chunks, which bounds the memory and suits
the processor's caches; the gradient of a chunk may be compiled, and the cores of a CPU then share out its tasks; and of
the K inner steps the parameters theta^k alone may be kept, each step being computed anew on the way back,

    c_k = d objective / d theta^k + (d theta^{k+1} / d theta^k)^T c_{k+1},    c_{K+1} = 0

and the gradient in theta and hyper-parameters is (d theta^0 / d .)^T c_0, plus what each step and the objective add
directly.

Compiled code trusts that nothing changes but its arguments. State that does is looked for at each call, in the plain
values that the algorithm and its parts hold; where some differs the code is compiled anew, and if that goes on, the
algorithm is refused.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache, partial, reduce
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn import Module
from torch.utils._pytree import tree_map, tree_map_only

from meta_exp.adaptation import Meta, Params, whole_path
from meta_exp.algorithms import Algorithm, Logs
from meta_exp.config.checks import is_out_of_memory, require
from meta_exp.hyper import Hyper
from meta_exp.models.pool import MaxPool2d
from meta_exp.tasks.episode import Episode
from meta_exp.training.cuda_graph import CudaGraph

log = logging.getLogger(__name__)
# named here: torch.compile cannot build these types inside a traced function
Outcome = tuple[Tensor, Logs]
Differentiated = tuple[Params, Hyper]
logging.getLogger("torch._inductor.ir").setLevel(logging.ERROR)  # it tells of each operator that it calls by its name
COMPILE_S, COMPILE_IMAGES_S = 15.0, 60.0  # that compiling one step takes on two cores; docs/performance.md
MORE_STEPS = 0.4  # times that, for each further one
COMPILE_FROM_STEPS = 2000  # about where the minute of compilation is earned back
WORSE = 1.25  # times the best time a task: where the trial of chunk sizes ends
RECOMPILATIONS = 3  # because state has changed; a further change ends the run


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
        algorithm: Algorithm,
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
        self._state: list[tuple[Mapping[str, Any], str, Any]] | None = None  # plain values when it was compiled
        self._recompiled = 0

    @property
    def at_once(self) -> int | None:
        """The tasks taken at once, as far as it is known: None for all."""
        return None if self.chunk_size == "auto" else self.chunk_size

    def about_to_compile(self, episodes: Episode) -> float | None:
        """Return about how many seconds the next call will take to compile; None where it does not."""
        if self._of_chunk not in (self._compile_first, self._compile_or_fall_back):
            return None
        return self._about_s(episodes)

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

    def __call__(self, meta: Meta, episodes: Episode, tasks: float | None = None) -> tuple[Tensor, Params, Hyper, Logs]:
        """Return the objective, its gradients in theta and hyper-parameters, and logged scalars; means over tasks.

        A gradient's numbers lie in memory as those of its parameter do: the fused optimisers of PyTorch pair them by
        their places there, whatever their shapes and strides say. ``meta.noise`` has a leading dimension of tasks, as
        ``episodes`` have. ``tasks`` is what their sums are divided by, where that is not the number of ``episodes``.
        """
        count = len(episodes.query.y)
        if self.chunk_size == "auto":
            self.chunk_size = self._fastest(meta, episodes)
        cores = self._cores(episodes)
        size = (self.chunk_size or count) // cores
        parts = [_tasks(meta, episodes, start, start + size) for start in range(0, count, size)]
        self._refuse_hidden_state()

        def take(part: tuple[Meta, Episode]) -> Any:
            return self._of_chunk(*part, tasks or count)

        if cores > 1 and self.compile_s:  # the sum there too: here it would wake a thread that then spins for a while
            workers = _workers(cores)
            total = workers.submit(_sum, list(workers.map(take, parts))).result()
        else:
            total = _sum(map(take, parts))
        (gradient, hyper_gradient), (objective, logs) = total
        return objective, _laid_out(gradient, meta.theta), _laid_out(hyper_gradient, meta.hyper), logs

    def _cores(self, episodes: Episode) -> int:
        """Return how many cores share out the tasks of a chunk evenly: of a CPU's, for code that is compiled.

        One core on a task of its own does more than two on the same, whose loops are short.
        """
        if self._of_chunk == self._eager or not self.chunk_size or episodes.query.y.device.type != "cpu":
            return 1
        return max(n for n in range(1, torch.get_num_threads() + 1) if int(self.chunk_size) % n == 0)

    def _eager(self, meta: Meta, episodes: Episode, tasks: float) -> Any:
        """Return what the tasks of a chunk contribute to means over ``tasks``."""
        gradient = self._checkpointed if self.checkpoint_steps else self._plain
        if len(episodes.query.y) == 1:  # plain products of matrices are faster than batches of one
            noise, episode = tree_map_only(Tensor, lambda value: value[0], (meta.noise, episodes))
            return tree_map(lambda value: value / tasks, gradient(meta._replace(noise=noise), episode))
        shared = Meta(None, None, None if meta.noise is None else 0, None)  # type: ignore[arg-type]
        return tree_map(lambda value: value.sum(0) / tasks, vmap(gradient, (shared, 0))(meta, episodes))

    def _plain(self, meta: Meta, episode: Episode) -> Any:
        """Return the gradients of one task in theta and hyper-parameters, its objective and its logs."""
        algorithm = self.algorithm

        def objective(theta: Params, hyper: Hyper) -> Outcome:
            here = meta._replace(theta=theta, hyper=hyper)
            return algorithm.objective(
                whole_path(algorithm, episode.support, here, algorithm.objective_steps), episode, here
            )

        return _gradients(objective, meta.theta, meta.hyper)

    def _checkpointed(self, meta: Meta, episode: Episode) -> Any:
        """Return the same, with the steps' graphs one at a time."""
        algorithm, learned = self.algorithm, (meta.theta, meta.hyper)

        def at(learned: Differentiated) -> Meta:
            return meta._replace(theta=learned[0], hyper=learned[1])

        states = whole_path(algorithm, episode.support, meta, algorithm.objective_steps)
        (of_states, total), outcome = _gradients(
            lambda states, learned: algorithm.objective(states, episode, at(learned)), states, learned
        )
        cotangent = of_states[-1]
        for k in reversed(range(algorithm.objective_steps)):

            def step(params: Params, learned: Differentiated, k: int = k) -> Params:
                return algorithm.step(params, episode.support, k, at(learned))

            through, direct = vjp(step, states[k], learned)[1](cotangent)
            cotangent = tree_map(torch.add, through, of_states[k])
            total = tree_map(torch.add, total, direct)
        [direct] = vjp(lambda learned: algorithm.start(at(learned)), learned)[1](cotangent)
        return tree_map(torch.add, total, direct), outcome

    def _about_s(self, episodes: Episode) -> float:
        """Return about how many seconds compiling takes: each inner step after the first is written out beside it."""
        one = COMPILE_IMAGES_S if episodes.support.x.ndim > 3 else COMPILE_S
        return one * (1 + MORE_STEPS * max(self.algorithm.objective_steps - 1, 0))

    def _refuse_hidden_state(self) -> None:
        """Compile anew where plain values have changed that the compiled code took as constants.

        Raises:
            ValueError: they change again and again.
        """
        if self._state is None:
            return
        changed = [name for space, name, value in self._state if space.get(name) != value]
        if not changed:
            return
        self._recompiled += 1
        expected, got = "no state but its arguments", f"{changed[0]!r} changed"
        remedy = "let it depend on Meta.progress, Meta.noise or a learned value; or set compile=false"
        require(self._recompiled <= RECOMPILATIONS, "compile: the algorithm", expected, got, remedy)
        log.warning("%s has changed since the meta-gradient was compiled: it is compiled anew", changed[0])
        self._state = None
        self._of_chunk = self._compile_first

    def _fastest(self, meta: Meta, episodes: Episode) -> int:
        """Try 1, 2, 4, ... tasks at once, and all, until more of them take more time a task."""
        count = len(episodes.query.y)
        best, seconds = 1, float("inf")
        for size in [*(2**k for k in range(count.bit_length()) if 2**k < count), count]:
            try:
                a_task = min(_seconds(self._eager, *_tasks(meta, episodes, 0, size), size) for _ in range(3))
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                break
            if a_task / size < seconds:
                best, seconds = size, a_task / size
            elif a_task / size > WORSE * seconds:
                break
        log.info("chunk_size=auto: %d of %d tasks at once, %.3g ms a task in the trial", best, count, 1e3 * seconds)
        return best

    def _compiled(self, episodes: Episode) -> Callable[..., Any]:
        """Return the gradient of a chunk compiled for fixed shapes, trusting that only its arguments change.

        To ask the network, its hooks and the algorithm at each call whether they changed takes longer than a small
        network. PyTorch files what it compiled under the code object: a copy of it for each instance keeps them apart.
        On a CPU it is one function in C++, which does not hold Python's lock where several run beside each other, and
        takes less time in between the operations of a small network. On a GPU its operations are started as one graph.
        """
        code = MetaGradient._eager.__code__.replace()
        method = MethodType(FunctionType(code, globals()), self)
        options: dict[str, Any] = {"guard_filter_fn": _guards_of_arguments}
        if episodes.query.y.device.type == "cpu":
            # the body apart from the loops it calls: to optimise five steps' worth of it takes a C++ compiler minutes
            options |= {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
            if any(isinstance(part, MaxPool2d) for part in self.algorithm.model.modules()):
                # a sum of few terms is else written out in each loop that reads it; and what reads much or takes many
                # operations is else stored, such as parts of the comparisons, at the size of the whole image
                options |= {"unroll_reductions_threshold": 1, "realize_reads_threshold": 20}
                options |= {"realize_opcount_threshold": 200}
        if self._cores(episodes) > 1:
            options["cpp.threads"] = 1
        compiled = torch.compile(method, dynamic=False, options=options)
        return CudaGraph(compiled) if episodes.query.y.device.type == "cuda" else compiled

    def _compile_first(self, meta: Meta, episodes: Episode, tasks: float) -> Any:
        compiled = self._compiled(episodes)
        said = "compiling the training step, about %.0f s; less where PyTorch has it in its cache"
        log.info(said, self._about_s(episodes))
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # matmul_precision is for that
            part = compiled(meta, episodes, tasks)
        self.compile_s += time.perf_counter() - started
        self._state = list(_plain_values(self.algorithm))
        log.info("compiled in %.0f s", self.compile_s)
        self._of_chunk = compiled
        return part

    def _compile_or_fall_back(self, meta: Meta, episodes: Episode, tasks: float) -> Any:
        try:
            return self._compile_first(meta, episodes, tasks)
        except Exception as error:  # whatever a compiler that is missing or broken raises
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("torch.compile is not available here (%s); training goes on without it", reason)
            self._of_chunk = self._eager
            return self._eager(meta, episodes, tasks)


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


def _laid_out(gradients: Params, parameters: Params) -> Params:
    """Return the gradients in the parameters' order in memory; those of compiled convolutions come in another."""

    def as_parameter(name: str, gradient: Tensor) -> Tensor:
        like = parameters[name]
        return gradient if gradient.stride() == like.stride() else torch.empty_like(like).copy_(gradient)

    return {name: as_parameter(name, gradient) for name, gradient in gradients.items()}


def _tasks(meta: Meta, episodes: Episode, start: int, stop: int) -> tuple[Meta, Episode]:
    if start == 0 and stop >= len(episodes.query.y):  # all of them: slices would cost more than a small network's layer
        return meta, episodes
    noise, part = tree_map_only(Tensor, lambda value: value[start:stop], (meta.noise, episodes))
    return meta._replace(noise=noise), part


def _plain_values(thing: Any, depth: int = 3) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """Yield where each plain value that ``thing``, its class and its parts hold stands: namespace, name, and a copy."""
    if isinstance(thing, Module):  # PyTorch's own do not change between two steps, and hold many values
        parts = [part for part in thing.modules() if not type(part).__module__.startswith("torch.")]
        spaces = [space for part in parts for space in _namespaces(part)]
    else:
        spaces = _namespaces(thing)
    for space in spaces:
        for name, value in list(space.items()):
            if name.startswith("__") or (isinstance(thing, Module) and (name.startswith("_") or name == "training")):
                continue
            if _plain(value):
                yield space, name, deepcopy(value)
            elif depth and space is vars(thing) and hasattr(value, "__dict__") and not callable(value):
                yield from _plain_values(value, depth - 1)
            elif depth and isinstance(value, Module):
                yield from _plain_values(value, 0)


def _namespaces(thing: Any) -> list[Mapping[str, Any]]:
    """Return the attributes of ``thing`` and of its classes, but for Python's and PyTorch's own."""
    own = [
        kind for kind in type(thing).__mro__ if kind.__module__.partition(".")[0] not in ("builtins", "abc", "torch")
    ]
    return [vars(thing), *map(vars, own)]


def _plain(value: Any) -> bool:
    """Whether ``value`` is a number, a string, None or a container of such, which compiled code takes as constant."""
    if isinstance(value, dict):
        return all(_plain(key) and _plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds that a call takes, what it starts on a GPU included."""
    started = time.perf_counter()
    function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _guards_of_arguments(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type == "TENSOR_MATCH" or guard.name == "L['tasks']" for guard in guards]
