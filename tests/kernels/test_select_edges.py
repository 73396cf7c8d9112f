"""Selection of the k best edges is a full stable sort, without the sort, on every back end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wiring.errors import BudgetError, WiringError
from wiring.kernels import backends
from wiring.kernels.select_edges import select_edges

SETS = backends.instruction_sets()
INFINITY = float("inf")
# Few distinct values, so that ties are the rule and not the exception; the last three differ in
# their lowest bits, in their exponents and in their signs.
VALUES = [0.0, -0.0, 0.5, 1.0, INFINITY, -INFINITY, 1.0000001, 1e-45, -1.0]
EDGES = st.lists(st.tuples(st.sampled_from(VALUES), st.booleans()), min_size=1, max_size=40)


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_sorting(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    index = allowed.nonzero().squeeze(1)
    order = torch.sort(scores[index].double(), descending=True, stable=True).indices
    live = torch.zeros_like(allowed)
    live[index[order[:k]]] = True
    return live


@pytest.mark.parametrize("name", SETS)
@settings(deadline=None)
@given(edges=EDGES, repeat=st.sampled_from([1, 30, 200]), data=st.data())
def test_it_equals_a_stable_sort_under_ties(
    name: str, edges: list[tuple[float, bool]], repeat: int, data: st.DataObject
) -> None:
    scores = torch.tensor([score for score, _ in edges]).repeat(repeat)
    allowed = torch.tensor([usable for _, usable in edges]).repeat(repeat)
    usable = int(allowed.sum())
    if usable == 0:
        return
    k = data.draw(st.integers(1, usable))
    with backends.use(name):
        assert torch.equal(select_edges(scores, allowed, k), by_sorting(scores, allowed, k))


@pytest.mark.usefixtures("seeded", "instruction_set", "threads")
@pytest.mark.parametrize("size", [511, 512, 1025, 50_001])
def test_it_equals_a_sort_on_many_scores(size: int) -> None:
    allowed = torch.rand(size) < 0.6
    usable = int(allowed.sum())
    for scores in (torch.randn(size), torch.randn(size).abs(), torch.randint(9, (size,)).float()):
        for k in (1, 7, usable // 2, usable - 1, usable):
            live = select_edges(scores, allowed, k)
            assert live.sum() == k
            assert torch.equal(live, by_sorting(scores, allowed, k))


@pytest.mark.usefixtures("instruction_set", "threads")
def test_equal_scores_live_from_the_first_index_on() -> None:
    size, k = 4 * 512 + 3, 1500
    live = select_edges(torch.ones(size), torch.ones(size, dtype=torch.bool), k)
    assert torch.equal(live, torch.arange(size) < k)


@pytest.mark.usefixtures("instruction_set")
def test_both_zeros_are_equal() -> None:
    allowed = torch.ones(4, dtype=torch.bool)
    scores = torch.tensor([-1.0, -0.0, 0.0, 0.0])
    assert select_edges(scores, allowed, 1).tolist() == [False, True, False, False]
    assert select_edges(-scores.abs(), allowed, 2).tolist() == [False, True, True, False]


@pytest.mark.usefixtures("instruction_set")
def test_unusable_edges_never_live_however_they_score() -> None:
    scores = torch.tensor([9.0, 1.0, float("nan"), 2.0, INFINITY, -3.0])
    allowed = torch.tensor([False, True, False, True, False, True])
    live = select_edges(scores, allowed, 3)
    assert live.tolist() == [False, True, False, True, False, True]


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("k", [0, -1, 4, 1 << 40])
def test_a_budget_outside_the_usable_edges_is_refused(k: int) -> None:
    allowed = torch.tensor([True, True, False, True])
    with pytest.raises(BudgetError, match=rf"must be in 1\.\.3, got {k}"):
        select_edges(torch.ones(4), allowed, k)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("size", [0, 5])
def test_a_scope_without_usable_edges_has_no_budget(size: int) -> None:
    with pytest.raises(BudgetError, match=r"must be in 1\.\.0, got 1"):
        select_edges(torch.ones(size), torch.zeros(size, dtype=torch.bool), 1)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("position", [0, 700, 1299])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_among_the_usable_scores_is_refused(position: int, sign: int) -> None:
    scores = torch.ones(1300)
    scores[position] = sign * float("nan")
    with pytest.raises(WiringError, match="must not be NaN"):
        select_edges(scores, torch.ones(1300, dtype=torch.bool), 1)


@pytest.mark.parametrize(
    ("scores", "allowed", "sentence"),
    [
        (torch.ones(3), torch.ones(4, dtype=torch.bool), r"got \[3\] and \[4\]"),
        (torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), r"takes scores \[E\]"),
        (torch.ones(3), torch.ones(3), r"bool tensor, got torch.float32"),
    ],
)
def test_tensors_of_another_shape_or_type_are_refused(
    scores: Tensor, allowed: Tensor, sentence: str
) -> None:
    with pytest.raises(WiringError, match=sentence):
        select_edges(scores, allowed, 1)


@pytest.mark.usefixtures("seeded", "instruction_set")
def test_spread_and_unaligned_inputs_select_the_same() -> None:
    scores, allowed = torch.randn(3001), torch.rand(3001) < 0.5
    expected = select_edges(scores, allowed, 900)
    wide = torch.empty(3001, 3)
    wide[:, 1] = scores
    shifted = torch.empty(3002)
    shifted[1:] = scores
    flags = torch.empty(3004, dtype=torch.bool)
    flags[3:] = allowed
    assert torch.equal(select_edges(wide[:, 1], flags[3:], 900), expected)
    assert torch.equal(select_edges(shifted[1:], allowed, 900), expected)
    assert torch.equal(select_edges(scores.flip(0).flip(0), allowed, 900), expected)


@pytest.mark.usefixtures("seeded", "instruction_set", "threads")
def test_one_flag_may_stand_for_all_edges() -> None:
    scores, flag = torch.randn(2100), torch.ones(1, dtype=torch.bool)
    every = flag.expand(2100)
    for k in (1, 99, 2100):
        assert torch.equal(select_edges(scores, every, k), by_sorting(scores, every.clone(), k))
    with pytest.raises(BudgetError, match=r"in 1\.\.0, got 1"):
        select_edges(scores, ~flag.expand(2100) & every, 1)
    with pytest.raises(BudgetError, match=r"in 1\.\.0, got 1"):
        select_edges(scores, (~flag).expand(2100), 1)
    scores[1700] = float("nan")
    with pytest.raises(WiringError, match="must not be NaN"):
        select_edges(scores, every, 5)


@pytest.mark.usefixtures("instruction_set")
def test_every_byte_of_the_result_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda t, **how: empty(t, **how).fill_(True))
    live = select_edges(torch.arange(1999.0), torch.arange(1999) != 7, 3)
    assert live.nonzero().flatten().tolist() == [1996, 1997, 1998]


@pytest.mark.usefixtures("instruction_set")
def test_it_leaves_its_inputs_alone_and_returns_memory_of_its_own() -> None:
    scores, allowed = torch.tensor([-0.0, 2.0, 1.0]), torch.ones(3, dtype=torch.bool)
    live = select_edges(scores, allowed, 3)
    assert live.data_ptr() != allowed.data_ptr()
    assert scores.tolist() == [0.0, 2.0, 1.0]
    assert scores[0].signbit()
    assert live.all()


@pytest.mark.usefixtures("seeded", "instruction_set")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_ranked_as_they_are(dtype: torch.dtype) -> None:
    # 1 + 2**-40 is no float32: rounding to one would make ties.
    scores = torch.cat([torch.randn(2000), torch.ones(5)]).to(dtype)
    if dtype == torch.float64:
        scores[2:4] = torch.tensor([1 + 2**-40, 1 + 2**-41], dtype=dtype)
    allowed = torch.rand(2005) < 0.7
    for k in (1, 300, 1000):
        assert torch.equal(select_edges(scores, allowed, k), by_sorting(scores, allowed, k))


@pytest.mark.usefixtures("seeded", "instruction_set")
def test_a_gradient_stops_at_the_selection() -> None:
    scores = torch.randn(50, requires_grad=True)
    live = select_edges(scores, torch.ones(50, dtype=torch.bool), 5)
    assert not live.requires_grad
    (scores * live).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, live.float())


@pytest.mark.usefixtures("seeded", "instruction_set")
def test_it_keeps_what_pytorch_asks_of_an_operator() -> None:
    scores, allowed = torch.randn(600), torch.rand(600) < 0.5
    for given_scores in (scores, scores[::2].repeat(2), scores.double()):
        torch.library.opcheck(
            torch.ops.wiring.select_edges.default, (given_scores, allowed, 17), {}
        )


@pytest.mark.usefixtures("seeded")
def test_a_compiled_function_selects_the_same() -> None:
    def masked(weight: Tensor, allowed: Tensor) -> Tensor:
        return weight * select_edges(weight.abs(), allowed, 40)

    weight, allowed = torch.randn(700), torch.rand(700) < 0.5
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight, allowed), masked(weight, allowed))


@pytest.mark.usefixtures("seeded")
def test_vmap_selects_in_every_row() -> None:
    scores, allowed = torch.randn(4, 90), torch.rand(4, 90) < 0.5
    both = torch.vmap(lambda s, a: select_edges(s, a, 9))(scores, allowed)
    assert torch.equal(
        both, torch.stack([select_edges(s, a, 9) for s, a in zip(scores, allowed, strict=True)])
    )
    shared = torch.vmap(lambda s: select_edges(s, allowed[0], 9), in_dims=1)(scores.t())
    assert torch.equal(shared, torch.stack([select_edges(s, allowed[0], 9) for s in scores]))
