"""The picture of tables: what is drawn are rows and predictions in the units of the files."""

import numpy as np
import torch

from meta_exp.tasks import CsvTasks
from meta_exp.tasks.picture import Band, View


def test_rows_are_drawn_in_units_of_the_files(own_tables):
    tasks = CsvTasks(str(own_tables))
    drawn = tasks.picture.tasks()
    (support_x, support_y), (x, y) = ((part.x[0].double().numpy(), part.y[0].double().numpy()) for part in drawn)
    view = View(support_x, support_y, x, y, {0: 0 * y, 1: y, 10: y}, Band(y, y - 1, y + 1), np.stack([y, y + 1]), {})
    figure = tasks.picture.draw([view])
    [ax] = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("speed", "fuel")
    x_scale, y_scale = tasks.columns.x_scale, tasks.columns.y_scale
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    rows = np.concatenate([x_scale.restore(drawn.query.x[0]), y_scale.restore(drawn.query.y[0])], 1)
    assert not (np.diff(rows[:, 0]) > 0).all()
    rows = rows[rows[:, 0].argsort()]  # a line runs from left to right, whatever the order of the points
    np.testing.assert_allclose(lines["query points"], rows)
    np.testing.assert_allclose(lines["after 10 steps"], rows)
    assert 40 < rows[:, 0].min() < rows[:, 0].max() < 160
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(band.max() - rows[:, 1].max(), y_scale.std[0], rtol=1e-6)
    assert "MSE over the query points 0" in ax.get_title()
    assert torch.is_tensor(drawn.query.x)
