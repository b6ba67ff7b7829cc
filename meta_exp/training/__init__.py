"""Meta-training on Lightning: the learner and its meta-gradient, the stream of batches, checkpoints, loggers."""

from meta_exp.training.schedule import Cosine

__all__ = ["Cosine"]
