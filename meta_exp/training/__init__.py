"""What Lightning runs: the learner with its meta-gradient, checkpoints, progress and loggers."""
