"""Spaces of graphs over time: the published counts, and that a state remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search.figures import page, write_artifacts
from search.figures.history import History
from search.figures.layout import controls, place
from search.figures.wiring import curves
from search.spaces.base import SPACES
from wiring.config import parse
from wiring.errors import ConfigError
from wiring.graph.convert import to_networkx, write_graph
from wiring.graph.costs import total_cost
from wiring.graph.driving import attach
from wiring.graph.measure import depth
from wiring.graph.topology import Continuous, Discrete
from wiring.network import ImageShape, ModelSpec, Network, build_network
from workers.evaluate import load_trained
from workers.files import append_line
from workers.spec import DataConfig, TrainConfig, TrialSpec
from workers.trial import run_trial

CIFAR = ImageShape(channels=3, side=32)
SMALL = ImageShape(channels=1, side=8)
TINY = ["tiny-discrete", "tiny-continuous"]


def build(name: str, image: ImageShape, classes: int = 10, **options: Any) -> ModelSpec:
    space = SPACES.get(name)(options)
    return space.build(space.defaults(image), image, classes)


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_graphs_over_time_have_the_published_counts(name: str) -> None:
    spec = build(name, CIFAR)
    topology = spec.topology
    assert sum(group.size for group in topology.groups) == 800
    [scope] = topology.scopes
    assert topology.usable_edges(scope) == 800 * 800
    assert scope.budget == 32_000
    assert scope.budget / topology.usable_edges(scope) == 0.05
    assert (topology.input.size, topology.output.size) == (32, 100)
    assert {g.steps for g in topology.groups} == {("act", "depthwise")}
    assert {(g.receive, g.norm) for g in topology.groups} == {(("norm",), "instance")}


@pytest.mark.parametrize("name", TINY)
def test_edges_filters_and_norms_are_the_papers_41_thousand_parameters(name: str) -> None:
    network = build_network(build(name, CIFAR))
    live = sum(int(scope.live.sum()) for _, scope in network.graph.wirings())
    nodes = sum(p.numel() for p in network.graph.nodes.parameters())
    stem = sum(p.numel() for p in network.stem.parameters())
    head = sum(p.numel() for p in network.head.parameters())
    # The paper's 41k is the graph alone: 32,000 edges, 800 filters of 3x3, 800 affine norms.
    assert (live, nodes) == (32_000, 800 * 9 + 800 * 2)
    assert round((live + nodes) / 1000) == 41
    assert (stem, head) == (448 + 32 + 160 + 544 + 64, 1_010)


def test_the_tiny_graphs_run_as_the_released_code_does() -> None:
    assert build("tiny-discrete", CIFAR).topology.dynamics == Discrete(steps=5)
    solved = build("tiny-continuous", CIFAR).topology.dynamics
    assert solved == Continuous(solver="dopri5", time=1.0, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("seeded")
def test_the_tiny_discrete_graph_is_five_times_relu_depthwise_edges_norm() -> None:
    network = build_network(build("tiny-discrete", CIFAR)).eval()
    x = torch.randn(2, 3, 32, 32)
    fed = network.stem(x)
    state = nn.functional.pad(fed, (0, 0, 0, 0, 0, 800 - 32))
    groups = [group.name for group in network.spec.topology.groups]
    graph, masks = network.graph, network.graph.live()
    filters = torch.cat([graph.nodes[n].get_parameter("depthwise.weight") for n in groups])
    weight = torch.cat([(graph.op(n).weight * masks[n])[:, :, 0, 0] for n in groups])
    for _ in range(5):
        sent = nn.functional.conv2d(state.relu(), filters, padding=1, groups=800)
        state = nn.functional.instance_norm(torch.einsum("vu,nuhw->nvhw", weight, sent))
    read = state[:, -100:, 2:5, 2:5].mean(dim=(2, 3))
    wanted = network.head[-1](read)
    torch.testing.assert_close(network(x), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_images_too_small_for_the_stem_are_refused_by_the_spaces_own_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"space {name} needs images of at least 5 pixels"):
        build(name, ImageShape(channels=3, side=4))


def test_a_sequence_has_a_step_for_every_row_and_a_node_for_every_channel_and_column() -> None:
    topology = build("sequence", CIFAR).topology
    assert topology.dynamics == Discrete(steps=32, feed="rows")
    assert topology.input.size == 3 * 32
    [scope] = topology.scopes
    assert scope.budget == topology.usable_edges(scope) // 4
    assert depth(build_network(build("sequence", SMALL)).graph) == 7


def early_row(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """8x8 noise whose class, 0 or 1, is the sign of its second row; later rows say nothing."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    classes = torch.arange(count) % 2
    x[:, 0, 1] = x[:, 0, 1].abs() * (2 * classes[:, None] - 1)
    return x, classes


def remembers(network: Network) -> float:
    """Accuracy on images of its own after a short training."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    attach(network, optimizer, steps=60)
    for step in range(60):
        x, classes = early_row(64, step)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(x), classes))
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    x, classes = early_row(400, 1_000)
    return float((network.eval()(x).argmax(dim=1) == classes).float().mean())


def test_a_sequence_remembers_an_early_row_and_not_without_its_recurrent_edges() -> None:
    model = build("sequence", SMALL, 2, hidden=24, outputs=8)
    assert remembers(build_network(model)) > 0.9
    # Without edges from states to states and without the skips, only the last rows are seen.
    topology = model.topology
    bundles = [
        bundle.replace(sources=("rows",) if bundle.name == "hidden" else ("rows", "hidden"))
        for bundle in topology.bundles
    ]
    forgetful = topology.replace(
        bundles=[bundle.to_dict() for bundle in bundles],
        scopes=[{"name": "all", "bundles": ["hidden", "out"]}],
        skips=[],
    )
    assert remembers(build_network(model.replace(topology=forgetful.to_dict()))) < 0.65


def trial(name: str, **train: Any) -> TrialSpec:
    """A small network of a space on some digits."""
    image = ImageShape(channels=1, side=8)
    space = SPACES.get(name)({"hidden": 12, "outputs": 6} if name == "sequence" else {})
    values = space.defaults(image) | ({} if name == "sequence" else {"edges": 8_000})
    settings = {"epochs": 2, "batch_size": 32, "calibration_images": 32, **train}
    return TrialSpec(
        model=space.build(values, image, 10),
        train=parse(TrainConfig, {**settings, "device": "cpu"}),
        data=DataConfig(name="digits", side=8, limit=80),
    )


def solved_trial() -> TrialSpec:
    """The same with a small differential equation."""
    spec = trial("sequence")
    topology = spec.model.topology.replace(
        groups=[
            g.replace(size=8 if g.name == "rows" else g.size).to_dict()
            for g in spec.model.topology.groups
        ],
        scopes=[{"name": "all", "bundles": ["hidden", "out"], "budget": 60}],
        dynamics={"kind": "continuous", "rtol": 1e-4, "atol": 1e-4},
    )
    model = spec.model.replace(topology=topology.to_dict(), stem={"kind": "conv"})
    return spec.replace(model=model.to_dict())


def test_a_trial_reports_evaluations_of_the_solver_and_costs_what_they_say(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    run_trial(solved_trial(), tmp_path / "solved", report=rows.append)
    for row in rows:
        assert row["nfe"] >= 8
        assert row["val_nfe"] >= 8
        assert row["depth"] > 0
    _, network = load_trained(tmp_path / "solved")
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["epoch"]))
    assert total_cost(network).to_dict()["energy"] == best["energy"]
    for row in rows:
        append_line(tmp_path / "solved" / "metrics.jsonl", row)
    shown = History(tmp_path / "solved")
    shown.show(shown.best)
    assert shown.network.graph.passes == best["val_nfe"]
    rows.clear()
    run_trial(trial("sequence", epochs=1), tmp_path / "discrete", report=rows.append)
    assert not any("nfe" in row for row in rows)


@pytest.mark.parametrize("kind", ["sequence", "continuous"])
def test_a_trial_that_was_cut_off_goes_on_to_the_same_rows(tmp_path: Path, kind: str) -> None:
    class Cut(Exception):
        pass

    spec = trial("sequence") if kind == "sequence" else solved_trial()
    spec = spec.replace(train=spec.train.replace(checkpoint_steps=1).to_dict())
    whole: list[dict[str, Any]] = []
    run_trial(spec, tmp_path / "whole", report=whole.append)

    def cut(row: dict[str, Any]) -> None:
        raise Cut

    with pytest.raises(Cut):
        run_trial(spec, tmp_path / "cut", report=cut)
    resumed: list[dict[str, Any]] = []
    run_trial(spec, tmp_path / "cut", report=resumed.append)
    timed = {"step_ms", "epoch_seconds", "time"}
    for before, after in zip(whole, resumed, strict=True):
        assert {key for key in before if before[key] != after[key]} <= timed
    weights = [(tmp_path / n / "weights.safetensors").read_bytes() for n in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_edges_that_run_backwards_or_in_a_circle_are_drawn_as_bows(tmp_path: Path) -> None:
    directory = tmp_path / "study" / "trials" / "0000"
    run_trial(trial("sequence", epochs=1), directory, report=lambda row: None)
    write_artifacts(directory)
    history = History(directory)
    layout = place(history.topology, history.table, history.best.edges)
    sources, destinations = history.table.ends(history.best.edges)
    lines = curves(layout, sources, destinations)
    forward = layout.x[destinations] > layout.x[sources]
    loops = sources == destinations
    assert loops.any()
    assert forward.any()
    assert (~forward & ~loops).any()
    height, width = np.ptp(lines[..., 1], axis=1), np.ptp(lines[..., 0], axis=1)
    assert (height[loops] > 1).all()
    assert (width[loops] > 0.3).all()
    ends = controls(layout, sources, destinations)
    np.testing.assert_allclose(lines[:, 0], ends[:, 0])
    np.testing.assert_allclose(lines[:, -1], ends[:, 3])
    # A bow leaves to the right and comes in from the left.
    assert (lines[~forward, 1, 0] > lines[~forward, 0, 0]).all()
    assert (lines[~forward, -2, 0] < lines[~forward, -1, 0]).all()
    data = page.page_data(history, layout, "name")
    json.dumps(data)
    assert len(data["layout"]["loop"]) == 3
    assert (directory / "artifacts" / "wiring.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["sequence", "tiny-discrete"])
def test_a_graph_over_time_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    options = {"hidden": 6, "outputs": 3} if name == "sequence" else {}
    original = build(name, SMALL, **options)
    live = build_network(original).graph.live()
    write_graph(tmp_path / "graph.json", to_networkx(original.topology, live))
    brought = build("graph-file", SMALL, path=str(tmp_path / "graph.json"))
    assert brought.topology.groups == original.topology.groups
    assert brought.topology.dynamics == original.topology.dynamics
    assert build_network(brought).eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
