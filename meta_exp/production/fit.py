"""From a network and tasks to a predictor, in a script or a notebook.

predictor = meta_exp.fit(model, family, algorithm="llama_predictive", steps=2000)
predictor.save("folder")                   meta_exp.load("folder") predicts the same
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from meta_exp.production.predictor import Predictor
from meta_exp.runs import fit as runs
from meta_exp.runs.fit import Part
from meta_exp.tasks.stream import TaskFamily


def fit(
    model: nn.Module | Callable[..., nn.Module],
    family: TaskFamily,
    overrides: str | Sequence[str] = (),
    *,
    algorithm: Part = "maml",
    likelihood: Part | None = None,
    curvature: Part | None = None,
    steps: int = 2000,
    seed: int = 0,
    calibrate: bool | None = True,
    device: str | torch.device = "cpu",
) -> Predictor:
    """Meta-train ``model`` on ``family`` and return a predictor for new tasks; the model that is given stays as it is.

    A bar shows the progress on a terminal; nothing else is said or written, and no dashboard is asked.

    Args:
        model: a network from inputs [N, *input_shape] to [N, outputs]; or a class of one that takes ``input_shape`` and
            ``outputs``, or ``functools.partial`` of it with further values, which a folder can name.
        family: the tasks; docs/extend.md says what it has to be.
        overrides: further keys of the config, in Hydra's grammar: ``["algorithm.inner_lr=0.1", "optimizer.lr=0.003"]``.
        algorithm: the name of an option, as on the command line, or a class or partial of your own.
        likelihood: likewise; by the family's targets if None: gaussian, poisson for counts, categorical for classes.
        curvature: likewise; what the algorithm brings if None.
        steps: of the optimizer.
        seed: of the training tasks, and of the weights where a class is given.
        calibrate: fit noise or temperature, and tau, to validation tasks, and find thresholds of conformal intervals.
        device: where the predictor computes; it trains on a GPU where there is one, as ``trainer.accelerator`` says.

    Raises:
        ValueError: something does not fit, in one line.
        FloatingPointError: the training diverged.
    """
    words = [overrides] if isinstance(overrides, str) else list(overrides)
    parts = {"algorithm": algorithm, "likelihood": likelihood, "curvature": curvature}
    values = {"trainer.max_steps": steps, "seed": seed, "calibrate": calibrate}
    run = runs.fit(model, family, words, parts, values)
    run.learner.to(device)
    return Predictor(run)
