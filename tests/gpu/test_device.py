"""The operations on a real GPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.gpu.cases import Case, cases

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton"),
]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_an_operation_on_a_gpu_gives_what_the_definition_gives(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.gpu.compare import difference, expected, settings

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with settings(case):
        result = case.function()(*case.arguments("cuda"))
    assert result.device.type == "cuda"
    assert difference(case, result, expected(case)) == ""


def test_gradients_on_a_gpu_are_those_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from wiring.kernels.l1_conv2d import l1_conv2d
    from wiring.kernels.masked_conv2d import masked_conv2d

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 6, 6), torch.randn(7, 5, 3, 3)
    live = torch.rand(weight.shape) < 0.5
    for operation, masks in ((l1_conv2d, 1), (masked_conv2d, 2)):
        gradients = []
        for device in ("cpu", "cuda"):
            leaves = [t.to(device).requires_grad_() for t in (x, weight)]
            y = operation(*leaves, *[live.to(device)] * masks, 2, 1)
            gradients.append(torch.autograd.grad(y.square().sum(), leaves))
        for ours, wanted in zip(gradients[1], gradients[0], strict=True):
            torch.testing.assert_close(ours.cpu(), wanted, rtol=1e-4, atol=1e-3)
