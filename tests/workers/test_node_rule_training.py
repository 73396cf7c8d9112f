"""A training on the way of which nodes go: the same however often it is cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trials import outcome, run_quietly, small_model, small_spec

from search.cli.options import as_toml, study_config
from search.driver import check
from search.figures.history import History
from search.figures.runs import Run
from wiring.config import Component
from wiring.errors import ConfigError, UnknownNameError, WiringError
from wiring.graph.phases import Phase
from wiring.graph.topology import Limit
from wiring.network import Network, build_network
from workers.evaluate import evaluate_run, load_trained, read_spec, read_trained_spec
from workers.optimize import optimize_run
from workers.removal import Removal, divided
from workers.spec import TrialSpec
from workers.trial import check_trial, run_trial

RULE = Component(name="dpp", share=0.5)


def node_spec(rule: Component | None = RULE, **train: Any) -> TrialSpec:
    """Four epochs of four steps; of the 16 nodes in the middle half go."""
    settings = {"epochs": 4, "lr": 0.05, "calibration_images": 64, **train}
    return small_spec(**settings).model_copy(update={"node_rule": rule})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that ran through."""
    directory = tmp_path_factory.mktemp("whole")
    run_quietly(node_spec(), directory)
    return directory


def test_nodes_go_half_way_and_the_rate_starts_anew(whole: Path) -> None:
    rows = outcome(whole)["history"]
    assert [row["nodes"] for row in rows] == [40, 40, 32, 32]
    assert [row["phase"] for row in rows] == ["train", "train", "fewer nodes", "fewer nodes"]
    rates = [row["lr"] for row in rows]
    assert rates[:2] == rates[2:]
    assert rates[1] < 0.3 * rates[0]
    assert rows[2]["multiplications"] < rows[1]["multiplications"]
    assert rows[2]["live_edges"] <= rows[1]["live_edges"]


def test_the_best_network_is_one_from_after_the_removal(whole: Path) -> None:
    found = outcome(whole)
    assert found["result"]["best_epoch"] >= 3
    assert found["result"]["costs"]["weight_bits"] == found["history"][-1]["weight_bits"]


def test_what_reads_a_trial_reads_the_smaller_network(whole: Path) -> None:
    assert read_spec(whole).model.topology.group("mid").size == 16
    assert read_trained_spec(whole).model.topology.group("mid").size == 8
    _, network = load_trained(whole)
    assert network.graph.op("mid-out").shape[:2] == (16, 8)
    result = json.loads((whole / "result.json").read_text())
    assert evaluate_run(whole)["accuracy"] == result["test_accuracy"]
    assert optimize_run(whole, whole / "compiled")["max_difference"] < 1e-3


def test_snapshots_are_those_of_the_smaller_network_since_the_removal(whole: Path) -> None:
    history = History(whole)
    assert [snapshot.epoch for snapshot in history.snapshots] == [2, 3, 4]
    assert history.topology.group("mid").size == 8
    last = history.snapshots[-1]
    assert len(last.edges) == outcome(whole)["history"][-1]["live_edges"]
    assert int(last.edges.max()) < 8 * 8 + 8 * 16
    run = Run(whole)
    assert int(run.masks(2)["all"].sum()) == len(history.snapshots[0].edges)


@pytest.mark.parametrize("rule", [RULE, Component(name="ssl", penalty=0.01)], ids=["dpp", "ssl"])
@pytest.mark.parametrize("removal", [0.5, 0.3], ids=["at a checkpoint", "between epochs"])
def test_cut_off_before_and_after_the_removal_it_ends_the_same(
    rule: Component, removal: float, tmp_path: Path
) -> None:
    spec = node_spec(rule, removal=removal, checkpoint_steps=3, epochs=3)
    run_quietly(spec, tmp_path / "whole")
    assert not (tmp_path / "whole" / "wirings" / "epoch-0000.safetensors").exists()
    ends: list[int] = []

    def die(epoch: int, step: int, steps: int) -> None:
        if epoch not in ends:
            ends.append(epoch)
            raise KeyboardInterrupt

    # Killed once at the end of each epoch: what stands then is from 3, 6 and 9 steps.
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_trial(spec, tmp_path / "cut", report=lambda row: None, progress=die)
    run_quietly(spec, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_what_a_lost_attempt_had_removed_is_forgotten(tmp_path: Path) -> None:
    """Its last checkpoint is from before the removal, its files are from after."""
    spec = node_spec(epochs=2)
    run_quietly(spec, tmp_path / "whole")

    def die(epoch: int, step: int, steps: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(spec, tmp_path / "cut", report=lambda row: None, progress=die)
    assert (tmp_path / "cut" / "network.json").exists()
    assert read_trained_spec(tmp_path / "cut").model != spec.model
    run_quietly(spec, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_rule_that_trains_shrinks_after_every_step_before_the_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A penalty beyond all measure leaves one node."""
    shrink, rates = Removal.shrink, []

    def counted(self: Removal, network: Network, lr: float) -> None:
        rates.append(lr)
        shrink(self, network, lr)

    monkeypatch.setattr(Removal, "shrink", counted)
    rule = Component(name="ssl", penalty=1e6)
    _, rows = run_quietly(node_spec(rule, epochs=2), tmp_path)
    assert [row["nodes"] for row in rows] == [40, 8 + 1 + 16]
    assert len(rates) == 4
    assert rates[0] == 0.05


def test_edges_that_stay_keep_their_age() -> None:
    spec = node_spec(Component(name="apoz", share=0.5))
    network = build_network(spec.model)
    live = network.graph.scope("all").live
    births = torch.where(live, torch.arange(len(live)) % 3, -1).to(torch.int16)
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    removal = Removal(spec, network, 16)
    small, after = removal.remove(network, [x], {"all": births}, 5)
    stayed = small.graph.scope("all").live
    assert set(after["all"][stayed].tolist()) == {0, 1, 2}
    assert set(after["all"][~stayed].tolist()) == {-1}


def test_a_border_divides_the_phase_it_falls_into() -> None:
    phases = (Phase("train", 0.6), Phase("prune", 0.4, lr=0.1))
    found, number = divided(phases, 0.75)
    assert [(p.name, round(p.share, 9), p.lr) for p in found] == [
        ("train", 0.6, 1.0),
        ("prune", 0.15, 0.1),
        ("fewer nodes", 0.25, 0.1),
    ]
    assert number == 2
    assert divided(phases, 0.6) == (phases, 1)


def test_an_ordinary_trial_is_the_trial_it_was_before_there_were_node_rules() -> None:
    spec = small_spec()
    assert spec.digest() == spec.replace(train={**spec.train.to_dict(), "removal": 0.3}).digest()
    assert spec.digest() != node_spec().digest()
    assert node_spec().digest() != node_spec(removal=0.3).digest()


def with_model(**changes: Any) -> TrialSpec:
    spec = node_spec()
    return spec.model_copy(update={"model": small_model().model_copy(update=changes)})


def test_what_cannot_lose_nodes_is_refused_before_it_trains() -> None:
    with pytest.raises(WiringError, match="can remove no node of this network: in: takes the"):
        check_trial(with_model(op=Component(name="xnor")), 64)
    with pytest.raises(WiringError, match="goes back to first weights"):
        check_trial(with_model(rule=Component(name="lottery")), 64)
    topology = small_model().topology
    limit = Limit(unit="energy", amount=1e6)
    limited = topology.scopes[0].replace(budget=None, limit=limit.to_dict())
    with pytest.raises(WiringError, match="scope 'all' has a budget of cost"):
        check_trial(with_model(topology=topology.replace(scopes=[limited])), 64)
    with pytest.raises(ConfigError, match="unknown key 'often'"):
        check_trial(node_spec(Component(name="apoz", often=1)), 64)
    with pytest.raises(WiringError, match="2 phases, for which 1 optimiser steps are too few"):
        check_trial(node_spec(epochs=1), 16)
    check_trial(node_spec(), 64)
    check_trial(small_spec(), 64)


def test_rules_with_phases_of_their_own_keep_them(tmp_path: Path) -> None:
    """The budget of a rule that prunes later shrinks with the network."""
    model = small_model(rule="fine-tune")
    spec = node_spec(Component(name="apoz", share=0.5), removal=0.25).model_copy(
        update={"model": model}
    )
    result, rows = run_quietly(spec, tmp_path)
    smaller = read_trained_spec(tmp_path).model.topology
    usable = smaller.usable_edges(smaller.scopes[0])
    assert usable == 8 * 8 + 8 * 16
    assert rows[-1]["live_edges"] == round(100 * usable / 384) == smaller.scopes[0].budget
    assert result.state == "finished"
    assert torch.isfinite(torch.tensor(result.val_accuracy or 0.0))


def test_the_flag_and_its_options_reach_the_settings() -> None:
    config = study_config(None, ["node_rule.share=0.3", "train.removal=0.2"], node_rule="apoz")
    assert config.node_rule == Component(name="apoz", share=0.3)
    assert config.train["removal"] == 0.2
    assert study_config(None, ()).node_rule is None
    assert "[node_rule]" in as_toml(config.to_dict())
    with pytest.raises(UnknownNameError, match="unknown node rule 'apos'; did you mean apoz"):
        check(study_config(None, (), node_rule="apos"), None)
    with pytest.raises(ConfigError, match="unknown key 'shre'"):
        check(study_config(None, ["node_rule.shre=0.3"], node_rule="apoz"), None)
