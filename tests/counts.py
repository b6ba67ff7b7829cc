"""A family of counts, which the package does not have: y ~ Poisson(exp(f(x) / 3)) for a sinusoid f."""

import torch

from meta_exp.tasks import Episode, Sinusoid


class CountTasks(Sinusoid):
    targets = "counts"

    def draw(self, split, rng, tasks):
        return Episode(*(part._replace(y=counts(rng, part.y)) for part in super().draw(split, rng, tasks)))

    def draw_curves(self, rng, tasks, points=200):
        support, query = super().draw_curves(rng, tasks, points)
        return Episode(support._replace(y=counts(rng, support.y)), query._replace(y=(query.y / 3).exp()))


def counts(rng, f):
    return torch.from_numpy(rng.poisson((f / 3).exp().numpy())).float()
