"""The benchmark of the GPU kernels, as far as it goes without a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "no GPU" in capsys.readouterr().err


def test_a_number_of_repetitions_below_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--repetitions", "0"])
    assert "must be at least 1" in capsys.readouterr().err


def test_both_sides_of_every_benchmark_run_on_a_small_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "LAYERS", ((3, 4, 5, 1),))
    for case in gpu.cases("cpu"):
        assert isinstance(case.ours(), torch.Tensor)
        for work in [case.torch] if callable(case.torch) else case.torch:
            assert isinstance(work(), torch.Tensor)
