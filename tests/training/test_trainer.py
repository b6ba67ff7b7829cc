"""Lightning's Trainer with the settings that have a meaning here; what it cannot do is refused by its key."""

import pytest
import torch

from meta_exp.training.trainer import Trainer


def test_what_is_the_same_for_every_run():
    trainer = Trainer(max_steps=3)
    assert (trainer.max_steps, trainer.val_check_interval, trainer.num_sanity_val_steps) == (3, 3, 0)
    assert trainer.check_val_every_n_epoch is None
    assert trainer.precision == "32-true"


@pytest.mark.parametrize("devices", [1, "1", "auto", -1, [0]])
def test_devices_as_lightning_takes_them(devices):
    """Lists and -1 are of GPUs: where there is none, Lightning's words follow the key."""
    if torch.cuda.is_available() or devices in (1, "1", "auto"):
        assert Trainer(max_steps=3, devices=devices).world_size >= 1
    else:
        with pytest.raises(ValueError, match=r"trainer.devices=.*CPUAccelerator"):
            Trainer(max_steps=3, devices=devices)


@pytest.mark.parametrize("devices", ["abc", "", "1.5", "0", 0, -2, 10**9, [], [0, 0], [-1]])
def test_devices_that_are_none(devices):
    with pytest.raises(ValueError, match=r"trainer.devices: expected how many, or a list of their numbers, got"):
        Trainer(max_steps=3, devices=devices)
