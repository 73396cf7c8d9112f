"""`wiring cost`: what it opens, what it counts before and after, and what it measures."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from search import costs
from tests.search.fake_study import FakeStudy, trial_spec
from tests.search.test_cli import Runner, wiring  # noqa: F401
from wiring.config import Component
from wiring.cost import Cost
from wiring.export import export
from wiring.graph.costs import CostRow, cost_table, total_cost
from wiring.graph.mixed import expand
from wiring.models.convert import convert
from wiring.models.layers import wired_layers
from wiring.network import build_network
from workers.costs import compare, dense_equivalent, operations, table


@pytest.fixture
def study(tmp_path: Path) -> FakeStudy:
    """One finished trial under wiring-runs."""
    made = FakeStudy(tmp_path / "wiring-runs", trials=1)
    made.epoch(made.ask(0), 1)
    made.end("0000")
    return made


def test_a_run_is_counted_layer_by_layer_before_and_after(
    wiring: Runner,  # noqa: F811
    study: FakeStudy,
) -> None:
    end = wiring("cost", "fake/0000", "--json")
    assert end.code == 0, end.err
    found = json.loads(end.out)
    network = study.networks["0000"]
    assert found["layers"] == json.loads(json.dumps(table(cost_table(network))))
    *layers, whole = found["compared"]
    assert whole["layer"] == "total"
    assert whole["weight_bits_after"] == total_cost(network).weight_bits
    for name in ("multiplications", "weight_bits", "energy", "activation_bits"):
        for side in ("before", "after"):
            parts = sum(line[f"{name}_{side}"] for line in layers)
            assert parts == pytest.approx(whole[f"{name}_{side}"])
    (edges,) = [line for line in layers if line["layer"] == "to-first"]
    assert (edges["multiplications_before"], edges["index_bits_before"]) == (128 * 64, 0)
    assert edges["theory"] == pytest.approx(128 / 38)
    assert edges["measured"] is None


def test_csv_goes_to_a_pipe_without_anything_else(
    wiring: Runner,  # noqa: F811
    study: FakeStudy,
) -> None:
    end = wiring("cost", str(study.trial("0000")), "--csv")
    assert (end.code, end.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(end.out)))
    assert {"to-output", "head.2", "two.index", "total"} <= {row["layer"] for row in rows}
    total = total_cost(study.networks["0000"])
    assert float(rows[-1]["energy_after"]) == pytest.approx(total.energy)


def test_an_exported_file_costs_what_its_network_does(
    wiring: Runner,  # noqa: F811
    study: FakeStudy,
    tmp_path: Path,
) -> None:
    network = study.networks["0000"].eval()
    export(network, tmp_path / "small.safetensors")
    found = json.loads(wiring("cost", "small.safetensors", "--json").out)
    assert found["layers"][-1]["energy"] == pytest.approx(total_cost(network).energy)


def test_a_model_of_torchvisions_is_counted_by_name(wiring: Runner) -> None:  # noqa: F811
    end = wiring("cost", "squeezenet1_1", "--input", "3x64x64")
    assert end.code == 0, end.err
    head, columns, *lines = end.out.splitlines()
    assert head == "one input of 3x64x64"
    assert columns.split()[:4] == ["layer", "kind", "multiply", "add"]
    assert lines[-1].startswith("total")
    # 1,235,496 parameters.
    assert "39.54 M" in lines[-1]


def test_what_is_not_counted_is_said_aloud_beside_the_table(
    wiring: Runner,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    monkeypatch.setattr(costs, "open_model", lambda *_: (Loose(), None))
    end = wiring("cost", "loose", "--input", "3x4x4", "--csv")
    assert end.err == "NOT COUNTED: Loose: Loose: what scale is used for is not known\n"
    assert "NOT" not in end.out


def test_a_converted_model_is_held_against_the_plain_one_layer_by_layer() -> None:
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten())
    model = copy.deepcopy(plain)
    convert(model, rule="one-shot", density=0.5, keep=())
    found = costs.report(model, (2, 8, 8), before=plain, measured=True)
    lines = {line["layer"]: line for line in found["compared"]}
    assert list(lines) == ["0", "2", "total"]
    for name, weights, positions in (("0", 54, 36), ("2", 108, 16)):
        line = lines[name]
        assert line["multiplications_before"] == weights * positions
        live = int(wired_layers(model)[name].live_mask.sum())
        assert line["multiplications_after"] == live * positions
        assert line["index_bits_after"] == weights
        assert line["before_us"] > 0
        assert line["after_us"] > 0
    assert lines["total"]["multiplications_after"] == sum(
        lines[name]["multiplications_after"] for name in "02"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet19"], "no run, no file and no model of torchvision's; did you mean resnet18"),
        (["fake/0009"], "there is no run 'fake/0009'"),
        (["resnet18", "--input", "3x"], "--input is like 3x224x224, got '3x'"),
        (["resnet18", "--csv", "--json"], "--csv and --json exclude one another"),
    ],
)
def test_a_mistake_gives_one_sentence(
    wiring: Runner,  # noqa: F811
    arguments: list[str],
    sentence: str,
) -> None:
    end = wiring("cost", *arguments)
    assert end.code == 1
    assert sentence in end.err
    assert len(end.err.splitlines()) == 1


def test_every_bundle_is_measured_before_and_after_and_slower_ones_are_called_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build_network(trial_spec().model).eval()
    (dense, _) = dense_equivalent(network.spec)
    first, second = costs.bundle_times(dense, network)
    bundles = {bundle.name for bundle in network.spec.topology.bundles}
    assert set(first) == set(second) == {*bundles, "total"}
    invented = {"to-first": 10.0, "total": 50.0}, {"to-first": 12.5, "total": 25.0}
    monkeypatch.setattr(costs, "bundle_times", lambda *_: invented)
    lines = {one["layer"]: one for one in costs.report(network, (), measured=True)["compared"]}
    assert (lines["to-first"]["measured"], lines["to-first"]["slower"]) == (0.8, True)
    assert (lines["total"]["measured"], lines["total"]["slower"]) == (2.0, False)
    assert lines["stem.0"]["slower"] is None


def test_layers_of_a_model_are_measured_by_themselves() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).train()
    found = costs.report(model, (3, 8, 8), measured=True)
    lines = {line["layer"]: line for line in found["times"]}
    assert set(lines) == {"0", "3", "total"}
    assert sum(lines[name]["operations_share"] for name in "03") == pytest.approx(1)
    assert sum(lines[name]["time_share"] for name in "03") == pytest.approx(1)
    assert all(line["us"] > 0 for line in lines.values())
    assert model.training
    assert "us" in costs.as_csv(found).splitlines()[0]


def test_the_dense_network_in_place_of_mixed_operators_has_one_bundle_where_they_have_several() -> (
    None
):
    plain = trial_spec().model
    parts = [Component(name=name) for name in ("dense", "xnor")]
    positions = {bundle.name: 64 for bundle in plain.topology.bundles}
    mixed = plain.model_copy(update={"topology": expand(plain.topology, parts, positions)})
    dense, places = dense_equivalent(mixed)
    assert places == {
        f"{name}-{op}": f"{name}-dense" for name in positions for op in ("dense", "xnor")
    }
    names = [row.name.removesuffix("-dense") for row in cost_table(build_network(dense))]
    whole = plain.topology.replace(
        scopes=[one.replace(budget=None).to_dict() for one in plain.topology.scopes]
    )
    expected = cost_table(build_network(plain.model_copy(update={"topology": whole})))
    assert names == [row.name for row in expected]
    before = [CostRow("x-dense", "edges", Cost(10, 10))]
    after = [CostRow("x-dense", "edges", Cost(2, 3)), CostRow("x-xnor", "edges", Cost(xnors=128))]
    one, total = compare(before, after, {"x-xnor": "x-dense"}, ({"x-dense": 4.0}, {"x-xnor": 1.0}))
    assert one.after == Cost(2, 3, 128) == total.after
    assert (one.theory, one.measured) == (20 / 9, 4.0)
    assert operations(one.after) == 2 + 3 + 2 * 2
