"""Families and their pictures: who has one, and that nobody pays for it before it is drawn."""

import sys

import commands
import pytest

from meta_exp.tasks import Harmonic, Linear, MiniImagenet, Omniglot, Sinusoid, Step
from meta_exp.tasks.picture import Pictured


@pytest.mark.parametrize("family", [Harmonic, Linear, Sinusoid, Step])
def test_functions_have_a_fan(family):
    assert isinstance(family(), Pictured)
    assert family().picture.name == "fan"


@pytest.mark.parametrize("family", [MiniImagenet, Omniglot])
def test_images_have_an_episode(family):
    assert isinstance(family("nowhere"), Pictured), "its data is not read"
    assert family("nowhere").picture.name == "episode"


def test_tasks_are_light():
    script = "import sys, meta_exp.tasks; sys.exit('matplotlib' in sys.modules)"
    assert commands.finished([sys.executable, "-c", script]).returncode == 0
