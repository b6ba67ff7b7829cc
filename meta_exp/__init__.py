"""Gradient-based meta-learning with honest uncertainty: MAML and LLAMA as swappable configs."""
