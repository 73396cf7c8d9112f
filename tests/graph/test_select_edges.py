"""Selection of the k best edges is a full stable sort, without the sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wiring.errors import BudgetError, WiringError
from wiring.kernels.select_edges import select_edges

# Few distinct values, so that ties are the rule and not the exception.
SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, -0.0, 0.5, 1.0, float("inf")]), st.booleans()),
    min_size=1,
    max_size=40,
)


def by_sorting(scores: torch.Tensor, allowed: torch.Tensor, k: int) -> torch.Tensor:
    order = sorted(allowed.nonzero().flatten().tolist(), key=lambda i: (-scores[i].item(), i))
    live = torch.zeros_like(allowed)
    live[order[:k]] = True
    return live


@given(SCORES, st.data())
def test_it_equals_a_stable_sort_under_ties(
    entries: list[tuple[float, bool]], data: st.DataObject
) -> None:
    scores = torch.tensor([score for score, _ in entries])
    allowed = torch.tensor([usable for _, usable in entries])
    usable = int(allowed.sum())
    if usable == 0:
        return
    k = data.draw(st.integers(1, usable))
    assert torch.equal(select_edges(scores, allowed, k), by_sorting(scores, allowed, k))


@pytest.mark.usefixtures("seeded")
def test_it_equals_a_sort_on_many_distinct_scores() -> None:
    scores, allowed = torch.randn(5000).abs(), torch.rand(5000) < 0.6
    assert torch.equal(select_edges(scores, allowed, 700), by_sorting(scores, allowed, 700))


def test_unusable_edges_never_live_however_they_score() -> None:
    scores = torch.tensor([9.0, 1.0, float("nan"), 2.0])
    allowed = torch.tensor([False, True, False, True])
    assert select_edges(scores, allowed, 2).tolist() == [False, True, False, True]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_budget_outside_the_usable_edges_is_refused(k: int) -> None:
    allowed = torch.tensor([True, True, False, True])
    with pytest.raises(BudgetError, match=rf"must be in 1\.\.3, got {k}"):
        select_edges(torch.ones(4), allowed, k)


def test_a_nan_among_the_usable_scores_is_refused() -> None:
    scores = torch.tensor([1.0, float("nan")])
    with pytest.raises(WiringError, match="must not be NaN"):
        select_edges(scores, torch.tensor([True, True]), 1)
