"""Ages, swap rates and overlaps against numbers made by hand."""

from __future__ import annotations

import pytest
import torch

from wiring.errors import TopologyError
from wiring.graph.telemetry import (
    age_counts,
    age_summary,
    first_births,
    jaccard,
    living,
    next_births,
    random_jaccard,
    swap_rate,
)


def masks(**scopes: str) -> dict[str, torch.Tensor]:
    """`one="110"` → the first two of three edges live."""
    return {name: torch.tensor([c == "1" for c in text]) for name, text in scopes.items()}


def test_an_edge_ages_by_an_epoch_and_begins_anew_after_a_break() -> None:
    births = first_births(masks(one="1100", two="10"))
    for epoch, live in enumerate((("1010", "10"), ("1110", "01"), ("1110", "10")), start=1):
        births = next_births(births, masks(one=live[0], two=live[1]), epoch)
    assert births["one"].tolist() == [0, 2, 1, -1]
    assert births["two"].tolist() == [3, -1]
    # Ages 3, 1, 2 and, of the edge that was dead in epoch 2, 0.
    assert age_counts(births, 3).tolist() == [1, 1, 1, 1]


def test_births_tell_which_edges_live() -> None:
    births = next_births(first_births(masks(one="110")), masks(one="011"), 1)
    assert living(births)["one"].tolist() == [False, True, True]


def test_quartiles_of_ages_are_those_of_the_live_edges() -> None:
    births = {"one": torch.tensor([4, 4, 3, 1, 0, -1, 0, 0, -1], dtype=torch.int16)}
    summary = age_summary(births, 4)
    # Ages 0 0 1 3 4 4 4.
    assert summary == {"mean_age": 16 / 7, "age_q1": 0.0, "median_age": 3.0, "age_q3": 4.0}


def test_a_wiring_without_live_edges_has_no_age_and_no_swaps() -> None:
    nothing = masks(one="00")
    assert set(age_summary(first_births(nothing), 0).values()) == {0.0}
    assert swap_rate(masks(one="11"), nothing) == 0


def test_the_swap_rate_is_the_share_of_live_edges_that_are_new() -> None:
    before, after = masks(one="1100", two="1000"), masks(one="1010", two="0111")
    assert swap_rate(before, after) == 4 / 5
    assert swap_rate(before, before) == 0


def test_overlap_counts_edges_of_all_scopes_together() -> None:
    one, other = masks(one="1100", two="111"), masks(one="0110", two="110")
    assert jaccard(one, other) == jaccard(other, one) == 3 / 6
    assert jaccard(one, one) == 1


def test_wirings_of_different_graphs_have_no_overlap() -> None:
    for other in (masks(one="110"), masks(two="11")):
        with pytest.raises(TopologyError, match="same usable edges"):
            jaccard(masks(one="11"), other)


def test_random_wirings_overlap_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, kept = {"one": 3000, "two": 500}, {"one": (600, 300), "two": (250, 400)}

    def draw(which: int) -> dict[str, torch.Tensor]:
        drawn = {}
        for name, size in sizes.items():
            drawn[name] = torch.zeros(size, dtype=torch.bool)
            drawn[name][torch.randperm(size, generator=generator)[: kept[name][which]]] = True
        return drawn

    pairs = [(draw(0), draw(1)) for _ in range(20)]
    found = sum(jaccard(*pair) for pair in pairs) / len(pairs)
    # 60 + 200 edges in both of 900 + 650 in all.
    assert random_jaccard(*pairs[0], sizes) == pytest.approx(260 / 1290)
    assert found == pytest.approx(260 / 1290, abs=0.01)
