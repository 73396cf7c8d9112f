"""Every registered algorithm: what it asks is in range, and a replayed journal asks the same."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.algorithms.base import ALGORITHMS, Algorithm
from search.spaces.base import mutate
from wiring.errors import ConfigError, UnknownNameError

CHOICES: dict[str, BaseDistribution] = {
    "width.s1": FloatDistribution(0.15, 1.0, log=True),
    "width.s2": FloatDistribution(0.15, 1.0),
    "edges": IntDistribution(8_000, 64_000, log=True),
    "layers": IntDistribution(1, 4),
    "op": CategoricalDistribution(("dense", "xnor", "adder")),
    "seed": CategoricalDistribution((0,)),
}
DIRECTIONS = {
    1: ("maximize",),
    2: ("maximize", "minimize"),
    3: ("maximize", "minimize", "minimize"),
}
SMALL = {
    "evolution": {"population": 4, "sample": 2},
    "tpe": {"startup": 4},
    "nsga2": {"population": 4},
}
ALL = pytest.mark.parametrize("name", ALGORITHMS.names())
Event = tuple[str, int, Any]


def make(name: str, objectives: int = 2, seed: int = 0, **changes: Any) -> Algorithm:
    settings: dict[str, Any] = {
        "choices": CHOICES,
        "directions": DIRECTIONS[objectives],
        "seed": seed,
        "options": SMALL.get(name, {}),
        "mutate": lambda values, rng: mutate(values, CHOICES, rng),
        **changes,
    }
    return ALGORITHMS.get(name)(**settings)


def worth(params: dict[str, Any], number: int, objectives: int) -> tuple[float, ...] | None:
    """A made-up trial: wide and xnor is good, edges cost; every seventh fails."""
    if number % 7 == 3:
        return None
    score = params["width.s1"] - params["width.s2"] + (params["op"] == "xnor")
    return (score, float(params["edges"]), float(params["layers"]))[:objectives]


def search(
    algorithm: Algorithm, trials: int, objectives: int, concurrent: int, order: int = 0
) -> list[Event]:
    """Run made-up trials, `concurrent` at once, that end in an order drawn from `order`."""
    rng = np.random.default_rng(order)
    journal: list[Event] = []
    running: list[int] = []
    asked: dict[int, dict[str, Any]] = {}
    for number in range(trials):
        asked[number] = algorithm.ask(number)
        journal.append(("ask", number, asked[number]))
        running.append(number)
        while len(running) >= concurrent:
            ended = running.pop(int(rng.integers(len(running))))
            values = worth(asked[ended], ended, objectives)
            algorithm.tell(ended, values)
            journal.append(("tell", ended, values))
    return journal


def replay(algorithm: Algorithm, journal: list[Event]) -> None:
    for kind, number, value in json.loads(json.dumps(journal)):
        if kind == "ask":
            algorithm.restore(number, value)
        else:
            algorithm.tell(number, tuple(value) if value is not None else None)


@ALL
def test_every_proposal_has_a_value_in_range_for_every_choice(name: str) -> None:
    for kind, _, params in search(make(name), 16, 2, concurrent=2):
        if kind == "ask":
            assert list(params) == list(CHOICES)
            assert 0.15 <= params["width.s1"] <= 1.0
            assert 0.15 <= params["width.s2"] <= 1.0
            assert isinstance(params["edges"], int)
            assert 8_000 <= params["edges"] <= 64_000
            assert params["layers"] in (1, 2, 3, 4)
            assert params["op"] in ("dense", "xnor", "adder")
            assert params["seed"] == 0


@ALL
@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("concurrent", [1, 2])
def test_a_search_cut_anywhere_and_replayed_goes_on_as_if_never_cut(
    name: str, objectives: int, concurrent: int
) -> None:
    journal = search(make(name, objectives), 14, objectives, concurrent)
    for cut, (kind, number, value) in enumerate(journal):
        if kind == "ask":
            resumed = make(name, objectives)
            replay(resumed, journal[:cut])
            assert resumed.ask(number) == value, f"cut before ask {number}"


@ALL
def test_a_replayed_search_keeps_agreeing_over_all_later_asks(name: str) -> None:
    whole = search(make(name), 20, 2, concurrent=2)
    resumed = make(name)
    cut = next(i for i, event in enumerate(whole) if event[:2] == ("ask", 9))
    replay(resumed, whole[:cut])
    for kind, number, value in whole[cut:]:
        if kind == "ask":
            assert resumed.ask(number) == value
        else:
            resumed.tell(number, value)


@ALL
def test_another_seed_asks_for_other_points(name: str) -> None:
    assert make(name, seed=0).ask(0) != make(name, seed=1).ask(0)


@ALL
def test_one_seed_asks_for_a_new_point_each_time(name: str) -> None:
    asks = [json.dumps(event[2]) for event in search(make(name), 16, 2, 1) if event[0] == "ask"]
    assert len(set(asks)) == len(asks)


@ALL
def test_failed_trials_alone_do_not_stop_a_search(name: str) -> None:
    algorithm = make(name)
    for number in range(8):
        algorithm.ask(number)
        algorithm.tell(number, None if number % 2 else (float("nan"), 1.0))
    assert set(algorithm.ask(8)) == set(CHOICES)


@ALL
def test_a_space_in_which_nothing_varies_is_asked_for_its_one_point(name: str) -> None:
    fixed: dict[str, BaseDistribution] = {
        "op": CategoricalDistribution(("xnor",)),
        "lr": FloatDistribution(0.1, 0.1),
    }
    algorithm = make(name, choices=fixed, mutate=lambda values, rng: mutate(values, fixed, rng))
    for number in range(6):
        assert algorithm.ask(number) == {"op": "xnor", "lr": 0.1}
        algorithm.tell(number, (0.5, 1.0))


@ALL
def test_what_a_caller_does_to_a_proposal_does_not_reach_the_algorithm(name: str) -> None:
    journal = search(make(name), 10, 2, 1)
    careless = make(name)
    for kind, number, value in copy.deepcopy(journal):
        if kind == "ask":
            params = careless.ask(number)
            assert params == value
            params.clear()
        else:
            careless.tell(number, value)


@pytest.mark.parametrize("name", ["evolution", "tpe", "nsga2"])
def test_what_is_told_steers_the_search_towards_good_points(name: str) -> None:
    journal = search(make(name, 1, options={}), 80, 1, concurrent=1)
    scores = [value[0] for kind, _, value in journal if kind == "tell" and value is not None]
    assert np.mean(scores[-20:]) > np.mean(scores[:10]) + 0.3


def test_evolution_mutates_one_choice_of_a_living_parent() -> None:
    algorithm = make("evolution")
    journal = search(algorithm, 24, 2, concurrent=1)
    told: list[int] = []
    for kind, number, value in journal:
        if kind == "tell":
            told += [number] if value is not None else []
        elif number >= 4:
            living = [algorithm.asked[parent] for parent in told[-4:]]
            assert min(sum(value[k] != parent[k] for k in CHOICES) for parent in living) == 1


def test_evolution_prefers_a_parent_that_no_other_beats() -> None:
    algorithm = make("evolution", options={"population": 4, "sample": 4})
    points = [(0.5, 5.0), (0.9, 9.0), (0.4, 6.0), (0.3, 7.0)]
    for number, values in enumerate(points):
        algorithm.ask(number)
        algorithm.tell(number, values)
    child = algorithm.ask(4)
    parents = [n for n in range(4) if sum(child[k] != algorithm.asked[n][k] for k in CHOICES) == 1]
    assert parents
    assert parents[0] in (0, 1)


def test_the_nearest_names_are_offered_for_an_unknown_algorithm() -> None:
    with pytest.raises(UnknownNameError, match="evolution"):
        ALGORITHMS.get("evolutoin")


@pytest.mark.parametrize(
    ("name", "options"),
    [("evolution", {"population": 0}), ("tpe", {"start": 3}), ("nsga2", {"population": 1})],
)
def test_options_out_of_range_or_unknown_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"algorithm {name}"):
        make(name, options=options)


def test_nothing_of_optuna_is_printed_during_a_search() -> None:
    code = (
        "from optuna.distributions import FloatDistribution\n"
        "from search.algorithms.base import ALGORITHMS\n"
        "for name in ALGORITHMS.names():\n"
        "    choices = {'lr': FloatDistribution(0.1, 1.0), 'x': FloatDistribution(0.0, 1.0)}\n"
        "    one = ALGORITHMS.get(name)(choices, ('maximize', 'minimize'), seed=0, options={},\n"
        "                               mutate=lambda values, rng: values)\n"
        "    for number in range(14):\n"
        "        values = one.ask(number)\n"
        "        one.tell(number, (values['lr'], values['x']) if number % 3 else None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
