"""Products that oneDNN takes are as precise as float32, or are not left to it."""

import pytest
import torch

from meta_exp.training import precision as products


@pytest.fixture(autouse=True)
def restored():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False


def test_float32_is_precise_and_bf16_is_not():
    assert products.precise(torch.matmul)
    assert not products.precise(lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    assert not products.precise(lambda a, b: a.bfloat16().float() @ b.bfloat16().float())


def test_what_is_taken_is_precise():
    """Whatever this processor does: float32's error stays, by one matrix and by a batch of them."""
    products.set_precision("highest", images=True)
    assert products.precise(torch.matmul)
    assert products.precise(lambda a, b: (a.expand(4, *a.shape) @ b.expand(4, *b.shape))[2])


@pytest.mark.parametrize(
    ("precise", "gpu", "setting"), [(True, False, "medium"), (False, False, "highest"), (True, True, "highest")]
)
def test_only_where_it_keeps_precision_and_no_gpu_would_take_it_up(precise, gpu, setting, monkeypatch):
    monkeypatch.setattr(products, "precise", lambda product: precise)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    products.set_precision("highest", images=True)
    assert torch.get_float32_matmul_precision() == setting


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_precision_that_was_chosen_stays(precision):
    """Also after a run on images in the same process."""
    products.set_precision("highest", images=True)
    products.set_precision(precision, images=False)
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_convolutions_on_a_gpu_follow(precision, tf32):
    """PyTorch takes them in TF32 unless told otherwise."""
    products.set_precision(precision, images=False)
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.backends.cudnn.deterministic


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolutions_of_the_highest_precision_on_a_gpu():
    products.set_precision("highest", images=True)
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 64, 14, 14, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    error = torch.nn.functional.conv2d(x.cuda(), w.cuda()).cpu() - exact
    assert error.norm() < 1e-5 * exact.norm()  # TF32 errs by 3e-4
