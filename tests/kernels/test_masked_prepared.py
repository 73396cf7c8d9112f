"""PreparedMasked returns what the operation returns, for images of any size in any order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_cases import Problem, problems

from wiring.errors import WiringError
from wiring.kernels import backends
from wiring.kernels.masked_conv2d import PreparedMasked

every_set = pytest.mark.parametrize("isa", backends.instruction_sets())


@every_set
def test_every_size_of_image_gives_the_sum_shifted_and_cut_at_zero(isa: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(problems, st.integers(0, 3), st.booleans(), st.booleans())
    def check(problem: Problem, more: int, shifted: bool, relu: bool) -> None:
        x, weight, live, _ = problem.tensors()
        shift = torch.linspace(-1, 1, len(weight)) if shifted else None
        prepared = PreparedMasked(
            weight, live, stride=problem.stride, padding=problem.padding, shift=shift, relu=relu
        )
        prepared(torch.ones(1 + more, problem.sources, 6 + more, 5 + 2 * more))
        expected = problem.expected()[0]
        if shift is not None:
            expected = expected + shift.double().view(-1, 1, 1)
        with backends.use(isa):
            y = prepared(x)
        last = x.is_contiguous(memory_format=torch.channels_last)
        assert (y.permute(0, 2, 3, 1) if last else y).is_contiguous()
        expected = expected.relu() if relu else expected
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=3e-4)

    check()


@every_set
def test_it_keeps_eight_bytes_per_live_edge_and_row(isa: str) -> None:
    weight, live = torch.ones(6, 5, 3, 3), torch.rand(6, 5, 3, 3) < 0.2
    with backends.use(isa):
        prepared = PreparedMasked(weight, live, stride=1, padding=1)
        prepared(torch.ones(2, 5, 8, 8))
        assert prepared.nbytes == 8 * int(live.sum()) + 8 * 7


@every_set
def test_a_nan_passes_the_relu(isa: str) -> None:
    weight = torch.ones(1, 1, 1, 1)
    with backends.use(isa):
        prepared = PreparedMasked(weight, weight.bool(), stride=1, padding=0, relu=True)
        assert prepared(torch.full((1, 1, 2, 2), torch.nan)).isnan().all()


def test_misuse_raises_a_sentence() -> None:
    weight, live = torch.ones(2, 3, 1, 1), torch.ones(2, 3, 1, 1, dtype=torch.bool)
    with pytest.raises(WiringError, match="must be float32"):
        PreparedMasked(weight.double(), live, stride=1, padding=0)
    with pytest.raises(WiringError, match="stride must be"):
        PreparedMasked(weight, live, stride=0, padding=0)
    with pytest.raises(WiringError, match="the shift must be"):
        PreparedMasked(weight, live, stride=1, padding=0, shift=torch.ones(3))
    prepared = PreparedMasked(weight, live, stride=1, padding=0)
    with pytest.raises(WiringError, match="images must be float32"):
        prepared(torch.ones(1, 3, 2, 2, dtype=torch.float64))
    with pytest.raises(WiringError, match="takes 3 channels"):
        prepared(torch.ones(1, 2, 2, 2))
