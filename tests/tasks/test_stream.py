"""Batches are a function of their key alone, and evaluation tasks are the same for everybody."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from meta_exp.tasks import Sinusoid
from meta_exp.tasks.stream import draw_batch, draw_tasks
from meta_exp.training.data import EvaluationBatches, TaskStream

FAMILY = Sinusoid(meta_batch=4)
PUBLISHED = [0.43624991178512573, 4.350724220275879, 3.1585354804992676]  # the first points of seed 0


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def test_a_key_gives_the_same_batch_each_time():
    assert same(draw_batch(FAMILY, 1, "train", 7), draw_batch(FAMILY, 1, "train", 7))


def test_each_part_of_the_key_counts():
    keys = [(0, "train", 0), (1, "train", 0), (0, "validation", 0), (0, "train", 1)]
    batches = [draw_batch(FAMILY, *key) for key in keys]
    assert not any(same(a, b) for i, a in enumerate(batches) for b in batches[:i])


def test_evaluation_tasks_depend_on_neither_the_meta_batch_nor_the_batching():
    whole = draw_tasks(FAMILY, "test", 0, 12)
    assert same(whole, draw_tasks(Sinusoid(meta_batch=9), "test", 0, 12))
    parts = draw_tasks(FAMILY, "test", 5, 7)
    assert torch.equal(parts.query.y, whole.query.y[5:7])
    batches = list(EvaluationBatches(FAMILY, "test", 25))
    assert [len(batch.query.y) for batch in batches] == [10, 10, 5]
    assert torch.equal(batches[1].support.x[:2], whole.support.x[10:])


def training_batch(rank=0, world_size=1, **settings):
    """The first meta-batch that a process takes when it starts at step 5 with two batches a step."""
    trainer = SimpleNamespace(global_step=5, accumulate_grad_batches=2, global_rank=rank, world_size=world_size)
    stream = TaskStream(FAMILY, seed=3, validation_tasks=10, test_tasks=10, **settings)
    stream.trainer = trainer
    return next(iter(stream.train_dataloader()))


def test_training_begins_where_the_trainer_stands():
    assert same(training_batch(), draw_batch(FAMILY, 3, "train", 10))


@pytest.mark.parametrize("settings", [{}, {"num_tasks": 6}])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_processes_share_out_the_tasks_of_one_batch(ranks, settings):
    whole = draw_batch(FAMILY, 3, "train", 10, **settings)
    shares = [training_batch(rank, ranks, **settings) for rank in range(ranks)]
    assert sum(len(share.query.y) for share in shares) == FAMILY.meta_batch
    assert max(len(share.query.y) for share in shares) - min(len(share.query.y) for share in shares) <= 1
    assert set.union(*map(rows, shares)) == rows(whole)


def rows(episode):
    return {tuple(row) for row in episode.support.x.flatten(1).tolist()}


def test_batches_draw_distinct_tasks():
    seen = [rows(draw_batch(FAMILY, 0, "train", k)) for k in range(20)]
    assert len(set.union(*seen)) == 20 * FAMILY.meta_batch


def test_the_tasks_of_a_key_are_those_of_published_figures():
    x = draw_batch(FAMILY, 0, "train", 0).support.x.flatten()
    assert x[:3].tolist() == PUBLISHED


def test_a_finite_number_of_training_tasks():
    batches = [draw_batch(FAMILY, 0, "train", k, num_tasks=6) for k in range(50)]
    assert same(batches[7], draw_batch(FAMILY, 0, "train", 7, num_tasks=6))
    assert all(len(rows(batch)) == FAMILY.meta_batch for batch in batches), "none is twice in a batch"
    assert len(set.union(*map(rows, batches))) == 6
    assert not rows(draw_batch(FAMILY, 1, "train", 0, num_tasks=6)) & set.union(*map(rows, batches))
    assert draw_batch(FAMILY, 0, "train", 0, num_tasks=2).query.y.shape == (4, 10, 1)


def test_each_of_a_finite_number_of_tasks_is_as_likely():
    counts = Counter(
        tuple(row)
        for k in range(300)
        for row in draw_batch(FAMILY, 0, "train", k, num_tasks=6).support.x.flatten(1).tolist()
    )
    assert all(abs(count - 200) < 5 * (200 * (1 - 4 / 6)) ** 0.5 for count in counts.values())


def test_a_finite_number_of_tasks_is_for_training_and_at_least_one():
    stream = TaskStream(FAMILY, seed=0, validation_tasks=10, test_tasks=10, num_tasks=3)
    [batch] = stream.val_dataloader()
    assert same(batch, draw_tasks(FAMILY, "validation", 0, 10))
    with pytest.raises(ValueError, match="num_tasks: expected null, for new tasks without end, or >= 1, got 0"):
        TaskStream(FAMILY, seed=0, validation_tasks=10, test_tasks=10, num_tasks=0)
