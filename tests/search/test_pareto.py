"""The Pareto front against a direct reading of its definition."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pareto import Direction, as_losses, crowding, pareto_front, ranks
from wiring.errors import WiringError

DIRECTIONS = st.lists(st.sampled_from(get_args(Direction)), min_size=1, max_size=3)


@st.composite
def clouds(draw: st.DrawFn) -> tuple[list[tuple[float, ...]], list[Direction]]:
    directions = draw(DIRECTIONS)
    values = st.integers(-3, 3).map(float) | st.floats(-10, 10)
    point = st.tuples(*[values for _ in directions])
    return draw(st.lists(point, max_size=12)), directions


def beats(a: tuple[float, ...], b: tuple[float, ...], directions: list[Direction]) -> bool:
    better = [x > y if d == "maximize" else x < y for x, y, d in zip(a, b, directions, strict=True)]
    worse = [x < y if d == "maximize" else x > y for x, y, d in zip(a, b, directions, strict=True)]
    return any(better) and not any(worse)


@given(clouds())
def test_the_front_is_what_no_other_point_beats(
    cloud: tuple[list[tuple[float, ...]], list[Direction]],
) -> None:
    points, directions = cloud
    expected = {p for p in points if not any(beats(q, p, directions) for q in points)}
    front = pareto_front(points, directions)
    assert {points[index] for index in front} == expected
    assert len(front) == len(expected)
    assert all(points.index(points[index]) == index for index in front)


@given(clouds())
def test_the_front_runs_from_the_best_first_objective_to_the_worst(
    cloud: tuple[list[tuple[float, ...]], list[Direction]],
) -> None:
    points, directions = cloud
    first = [points[index][0] for index in pareto_front(points, directions)]
    assert first == sorted(first, reverse=directions[0] == "maximize")


@given(clouds())
def test_every_rank_is_the_front_of_what_the_better_ranks_leave(
    cloud: tuple[list[tuple[float, ...]], list[Direction]],
) -> None:
    points, directions = cloud
    rank = ranks(as_losses(points, directions))
    for level in set(rank):
        rest = [p for p, one in zip(points, rank, strict=True) if one >= level]
        front = {rest[index] for index in pareto_front(rest, directions)}
        assert {p for p, one in zip(points, rank, strict=True) if one == level} == front


def test_accuracy_against_cost_keeps_the_trade_off() -> None:
    points = [(0.9, 100.0), (0.95, 200.0), (0.9, 150.0), (0.8, 50.0), (0.95, 200.0)]
    assert pareto_front(points, ("maximize", "minimize")) == [1, 0, 3]


def test_crowding_is_infinite_at_the_ends_and_larger_where_there_is_room() -> None:
    ends_and_middle = crowding([(0.0, 10.0), (1.0, 9.0), (2.0, 4.0), (10.0, 0.0)])
    assert ends_and_middle[0] == ends_and_middle[3] == math.inf
    assert ends_and_middle[1:3] == pytest.approx([0.2 + 0.6, 0.9 + 0.9])


@pytest.mark.parametrize("point", [(0.5,), (0.5, math.nan), (0.5, 1.0, 2.0)])
def test_a_point_of_another_shape_or_with_nan_is_refused(point: tuple[float, ...]) -> None:
    with pytest.raises(WiringError, match="2 objectives"):
        pareto_front([point], ("maximize", "minimize"))
