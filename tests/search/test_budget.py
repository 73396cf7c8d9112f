"""Budgets of a study: how they are said, what they buy, and what they refuse."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from search.budget import apply_budget, usage
from search.cli import options
from search.config import BudgetConfig, StudyConfig
from search.spaces.base import SPACES
from search.study import Study
from tests.search.test_cli import Runner, wiring  # noqa: F401
from wiring.errors import BudgetError, ConfigError
from wiring.graph.costs import edge_positions, total_cost
from wiring.graph.driving import advance
from wiring.graph.topology import Scope
from wiring.network import ImageShape, ModelSpec, Network, build_network

IMAGE = ImageShape(channels=1, side=32)


def model(op: str = "dense", rule: str = "dnw", space: str = "mobilenet-graph") -> ModelSpec:
    options_ = {"size": "eighth"} if space == "mobilenet-graph" else {}
    family = SPACES.get(space)(options_)
    return family.build({**family.defaults(IMAGE), "op": op, "rule": rule}, IMAGE, 10)


def live(bought: ModelSpec) -> int:
    topology = bought.topology
    return sum(topology.live_edges(scope) for scope in topology.scopes)


def test_a_density_gives_every_scope_its_share() -> None:
    bought = apply_budget(model(), BudgetConfig(density=0.25))
    for scope in bought.topology.scopes:
        assert scope.budget == pytest.approx(0.25 * bought.topology.usable_edges(scope), abs=1)


def test_a_number_of_edges_is_kept_in_every_scheme() -> None:
    for scheme in ("uniform", "erk", "pool"):
        budget = BudgetConfig.model_validate({"edges": 2000, "densities": scheme})
        bought = apply_budget(model(), budget)
        assert live(bought) == 2000
        assert len(bought.topology.scopes) == (1 if scheme == "pool" else 5)


@pytest.mark.parametrize("op", ["dense", "xnor", "adder"])
@pytest.mark.parametrize("unit", ["energy", "weight_bits"])
def test_real_units_buy_the_most_edges_that_stay_within(op: str, unit: str) -> None:
    plain = model(op)
    full = BudgetConfig.model_validate({unit: 1e18})
    most = usage(build_network(apply_budget(plain, full)), full)
    none = BudgetConfig.model_validate({unit: 1.0})
    with pytest.raises(BudgetError) as refused:
        apply_budget(plain, none)
    fixed = float(str(refused.value).split("below the ")[1].split()[0])
    budget = BudgetConfig.model_validate({unit: (fixed + most) / 2})
    bought = apply_budget(plain, budget)
    network = build_network(bought)
    assert 0.9 * budget.amount <= usage(network, budget) <= 1.02 * budget.amount
    assert live(bought) > len(bought.topology.scopes)
    cost = total_cost(network)
    assert getattr(cost, unit) <= usage(network, budget)


@pytest.mark.parametrize("op", ["vq", "product-vq"])
def test_operators_that_train_in_stages_keep_a_budget_of_bits_in_the_last(op: str) -> None:
    budget = BudgetConfig(weight_bits=3e5)
    network = build_network(apply_budget(model(op, space="lenet5-bn"), budget))
    advance(network)
    assert 0.9 * budget.amount <= usage(network, budget) <= 1.02 * budget.amount


def test_bits_that_only_trained_weights_decide_hold_no_budget() -> None:
    with pytest.raises(ConfigError, match="DeepCompression takes is known only when it is trained"):
        apply_budget(model("deep-compression"), BudgetConfig(weight_bits=1e6))
    assert live(apply_budget(model("deep-compression"), BudgetConfig(energy=1.2e6)))


def test_mixed_edges_that_share_a_codebook_or_parameters_hold_no_budget_of_bits() -> None:
    with pytest.raises(ConfigError, match="share a part that others would need as well"):
        apply_budget(model("mixed:dense,product-vq"), BudgetConfig(weight_bits=3e5))
    with pytest.raises(ConfigError, match="edges of Hashed share parameters, so that one has no"):
        apply_budget(model("mixed:hashed,xnor"), BudgetConfig(weight_bits=3e5))


def test_mixed_edges_of_factors_are_priced_as_they_compute_where_not_all_of_them_live() -> None:
    budget = BudgetConfig(energy=1.2e6)
    network = build_network(apply_budget(model("mixed:low-rank,adder"), budget))
    assert 0.98 * budget.amount < usage(network, budget) <= budget.amount


def test_one_edge_more_would_pass_the_amount() -> None:
    budget = BudgetConfig(multiplications=1e6)
    bought = apply_budget(model(space="tiny"), budget)
    (scope,) = bought.topology.scopes
    assert scope.budget is not None
    positions = 64
    spent = usage(build_network(bought), budget)
    assert spent <= budget.amount < spent + positions


def test_an_amount_below_the_fixed_parts_is_refused_with_both_numbers() -> None:
    with pytest.raises(BudgetError, match=r"a budget of 1000 energy is below the [\de.+]+ that"):
        apply_budget(model(), BudgetConfig(energy=1000))
    with pytest.raises(BudgetError, match=r"a budget of 1000 energy is below the [\de.+]+ that"):
        apply_budget(model("mixed:dense,xnor"), BudgetConfig(energy=1000))


@pytest.mark.parametrize("densities", ["uniform", "erk", "pool"])
def test_mixed_operators_compete_for_what_the_fixed_parts_leave(densities: str) -> None:
    budget = BudgetConfig.model_validate({"energy": 1.2e6, "densities": densities})
    bought = apply_budget(model("mixed:dense,adder"), budget)
    limits = [scope.limit for scope in bought.topology.scopes]
    assert None not in limits
    assert (len(limits) == 1) == (densities == "pool")
    network = build_network(bought)
    assert 0.98 * budget.amount < usage(network, budget) <= budget.amount


def test_layers_that_keep_all_edges_count_in_the_budget_of_mixed_operators() -> None:
    image = ImageShape(channels=1, side=28)
    space = SPACES.get("lenet5-bn")({})
    values = {**space.defaults(image), "op": "mixed:dense,adder", "rule": "dnw"}
    budget = BudgetConfig(energy=1.2e6)
    bought = apply_budget(space.build(values, image, 10), budget)
    assert 0.98 * budget.amount < usage(build_network(bought), budget) <= budget.amount


def test_a_pool_of_one_operator_holds_no_budget_of_operations() -> None:
    with pytest.raises(ConfigError, match="cannot hold a budget of energy; share it with"):
        apply_budget(model(), BudgetConfig(energy=1.2e6, densities="pool"))


def test_a_limit_is_shared_out_by_what_the_scopes_would_spend_on_products() -> None:
    bought = apply_budget(model("mixed:dense,adder"), BudgetConfig(energy=1.2e6))
    amounts = {s.name: s.limit.amount for s in bought.topology.scopes if s.limit is not None}
    plain = model()
    positions = edge_positions(build_network(plain))
    whole = {
        scope.name: sum(
            plain.topology.usable_edges(Scope(name="one", bundles=(name,))) * positions[name]
            for name in scope.bundles
        )
        for scope in plain.topology.scopes
    }
    for name, amount in amounts.items():
        share = whole[name] / sum(whole.values())
        assert amount / sum(amounts.values()) == pytest.approx(share, rel=0.05)


def test_a_latency_is_bought_by_what_is_predicted() -> None:
    asked: list[int] = []

    def predict(network: Network) -> float:
        edges = sum(int(mask.sum()) for mask in network.graph.live().values())
        asked.append(edges)
        return 1 + edges / 1000

    budget = BudgetConfig(latency_ms=3.0)
    assert live(apply_budget(model(), budget, predict)) == 2000
    assert len(asked) < 25
    bought = apply_budget(model("mixed:dense,adder"), BudgetConfig(latency_ms=3.0), predict)
    assert all(scope.limit is not None for scope in bought.topology.scopes)


def test_a_rule_that_keeps_no_number_of_edges_holds_no_budget_in_real_units() -> None:
    with pytest.raises(ConfigError, match="rule complete does not keep a number of edges"):
        apply_budget(model(rule="complete"), BudgetConfig(energy=1e6))


@pytest.mark.parametrize(
    ("given", "picojoule"), [("1.8uJ", 1.8e6), ("1.8 µJ", 1.8e6), ("250nJ", 2.5e5), ("42", 42.0)]
)
def test_energy_is_picojoule_unless_it_names_its_unit(given: str, picojoule: float) -> None:
    assert BudgetConfig.model_validate({"energy": given}).energy == pytest.approx(picojoule)


def config(**budget: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {"space": {"name": "mobilenet-graph", "size": "eighth"}, "trials": 2, "budget": budget}
    )


def begun(tmp_path: Path, settings: StudyConfig) -> Study:
    study = Study.create(tmp_path, "s", settings)
    study.begin(IMAGE, classes=10, images=1200)
    return study


def test_a_budget_takes_the_place_of_the_spaces_widths(tmp_path: Path) -> None:
    study = begun(tmp_path, config(edges=1500))
    assert not any(key.startswith("width") for key in study.choices)
    trial = study.ask()
    assert trial is not None
    spec = study.spec(trial.params)
    assert live(spec.model) == 1500
    assert spec.model.choices["budget.edges"] == 1500
    assert "width.s1" not in spec.model.choices


@pytest.mark.parametrize("pinned", [{"fix": {"width.s1": 0.5}}, {"space": {"width": 0.5}}])
def test_a_width_that_is_pinned_beside_a_budget_is_refused(
    tmp_path: Path, pinned: dict[str, dict[str, Any]]
) -> None:
    plain = config(density=0.5).to_dict()
    plain["fix"] = pinned.get("fix", {})
    plain["space"] |= pinned.get("space", {})
    with pytest.raises(ConfigError, match="and the budget both say how many edges live"):
        begun(tmp_path, StudyConfig.model_validate(plain))


def test_a_study_of_mixed_operators_names_them_in_its_trials(tmp_path: Path) -> None:
    settings = StudyConfig.model_validate(
        {"space": "tiny", "op": ["mixed:dense,xnor,adder"], "trials": 1}
    )
    study = begun(tmp_path, settings)
    trial = study.ask()
    assert trial is not None
    assert trial.params["op"] == "mixed:dense,xnor,adder"
    spec = study.spec(trial.params)
    assert spec.model.op.name == "mixed:dense,xnor,adder"
    assert len(spec.model.topology.bundles) == 15


def test_names_after_mixed_stay_together() -> None:
    given = ["dense, xnor", "mixed:dense, xnor,adder", "bwn,mixed:dense,adder"]
    assert options.names(given) == [
        "dense",
        "xnor",
        "mixed:dense,xnor,adder",
        "bwn",
        "mixed:dense,adder",
    ]


def test_flags_become_the_budget_of_the_settings(wiring: Runner) -> None:  # noqa: F811
    flags = ("--budget", "energy=1.8uJ", "--densities", "erk", "--op", "mixed:dense,xnor")
    end = wiring("search", "--dry-run", *flags, "--set", "op.xnor.input_scale=true")
    printed = tomllib.loads(end.out)
    assert printed["budget"] == {"energy": 1.8e6, "densities": "erk"}
    assert printed["op"] == [{"name": "mixed:dense,xnor", "xnor": {"input_scale": True}}]
    end = wiring("train", "--dry-run", "--set", "budget.weight_bits=1e6")
    assert tomllib.loads(end.out)["budget"]["weight_bits"] == 1e6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--density", "0.3", "--edges", "10"], "given are density and edges"),
        (["--densities", "erk"], "given are none"),
        (["--budget", "joule=3"], "--budget takes multiplications=…, energy=…"),
        (["--density", "1.5"], "budget.density: input should be less than or equal to 1"),
        (["--budget", "energy=much"], "budget.energy: input should be a valid number"),
    ],
)
def test_a_wrong_budget_is_one_sentence(
    wiring: Runner,  # noqa: F811
    arguments: list[str],
    sentence: str,
) -> None:
    end = wiring("search", "--dry-run", *arguments)
    assert end.code == 1
    assert sentence in end.err
    assert end.err.count("\n") == 1


def test_a_budget_of_latency_without_a_table_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="measure one with 'wiring profile'"):
        begun(tmp_path, config(latency_ms=2.0))
