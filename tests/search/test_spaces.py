"""The spaces: the counts of the published graphs, and what every space promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import nn

from search.spaces.base import SPACES, Space, batch_size, mutate, narrow, sample, settle
from search.spaces.mobilenet_graph import MobileNetGraph
from wiring.config import parse
from wiring.errors import ConfigError, TopologyError
from wiring.graph.convert import to_networkx, write_graph
from wiring.graph.costs import cost_table
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology
from wiring.network import ImageShape, ModelSpec, Network, build_network
from workers.spec import TrainConfig

DIGITS = ImageShape(channels=1, side=32)
CIFAR = ImageShape(channels=3, side=32)
IMAGENET = ImageShape(channels=3, side=224)
ALL = pytest.mark.parametrize("name", SPACES.names())

BUDGETS = {
    0.15: [47, 553, 2_212, 32_441, 35_390],
    0.225: [104, 1_245, 4_977, 72_991, 79_627],
    0.3: [185, 2_212, 8_848, 129_762, 141_558],
    0.49: [492, 5_901, 23_603, 346_175, 377_645],
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The options that a space cannot do without."""
    path = tmp_path / "diamond.json"
    edges = [("a", "c"), ("b", "c"), ("a", "d"), ("b", "d"), ("c", "e"), ("d", "e"), ("a", "e")]
    path.write_text(
        json.dumps(
            {
                "directed": True,
                "multigraph": False,
                "graph": {},
                "nodes": [{"id": node} for node in "abcde"],
                "edges": [{"source": source, "target": target} for source, target in edges],
            }
        )
    )
    return {"graph-file": {"path": str(path)}}


def build(
    name: str, image: ImageShape, classes: int, options: dict[str, Any], **values: Any
) -> ModelSpec:
    space = SPACES.get(name)(options)
    return space.build({**space.defaults(image), **values}, image, classes)


def entries(topology: Topology, scope: str) -> int:
    """Size of a scope's matrix: all its destinations times all its sources."""
    [found] = [one for one in topology.scopes if one.name == scope]
    rows = sum(topology.group(topology.bundle(name).destination).size for name in found.bundles)
    return rows * topology.fan_in(found, topology.bundle(found.bundles[0]))


# -- mobilenet-graph -----------------------------------------------------------------------


def test_the_five_stages_have_the_published_pools_and_usable_shares() -> None:
    topology = build("mobilenet-graph", CIFAR, 10, {"size": "full"}).topology
    pools = {scope.name: entries(topology, scope.name) for scope in topology.scopes}
    assert list(pools.values()) == [2_048, 49_152, 196_608, 8_650_752, 3_145_728]
    usable = [topology.usable_edges(scope) / pools[scope.name] for scope in topology.scopes]
    assert usable == pytest.approx([1.0, 2 / 3, 2 / 3, 6 / 11, 2 / 3])


@pytest.mark.parametrize(("width", "budgets"), BUDGETS.items())
def test_the_budget_of_every_stage_is_the_published_ceiling(
    width: float, budgets: list[int]
) -> None:
    spec = build("mobilenet-graph", CIFAR, 10, {"size": "full", "width": width})
    assert [scope.budget for scope in spec.topology.scopes] == budgets


@pytest.mark.parametrize(
    ("width", "total"), [(0.15, 70_643), (0.225, 158_944), (0.3, 282_565), (0.49, 753_816)]
)
def test_the_budgets_add_up_to_the_published_total(width: float, total: int) -> None:
    spec = build("mobilenet-graph", CIFAR, 10, {"size": "full", "width": width})
    assert sum(scope.budget or 0 for scope in spec.topology.scopes) == total


def imagenet_network(**options: Any) -> Network:
    options = {"width": 0.225, **options}
    return build_network(build("mobilenet-graph", IMAGENET, 1_000, options, rule="random"))


def test_at_225_the_parameters_of_1000_classes_are_the_papers_1_2_million() -> None:
    network = imagenet_network()
    live = sum(int(scope.live.sum()) for _, scope in network.graph.wirings())
    depthwise = sum(
        m.weight.numel()
        for m in network.graph.nodes.modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    )
    norms = sum(
        p.numel()
        for m in network.modules()
        if isinstance(m, nn.BatchNorm2d)
        for p in m.parameters()
    )
    head = sum(p.numel() for p in network.head.parameters())
    stem = sum(p.numel() for p in network.stem.parameters())
    assert (live, depthwise, head, stem) == (158_944, 44_640, 1_025_000, 864)
    assert norms == 2 * (32 + 64 + 2 * 128 + 2 * 256 + 6 * 512 + 2 * 1024)
    assert round((live + depthwise + norms + head + stem) / 1e6, 2) == 1.24


def test_at_225_the_multiply_adds_of_random_wiring_are_the_papers_55_7_million() -> None:
    rows = cost_table(imagenet_network())
    multiplications = sum(row.cost.multiplications for row in rows if row.kind != "norm")
    assert multiplications == pytest.approx(55.7e6, rel=0.02)


def test_small_wires_the_classifier_at_the_same_width_in_full_precision() -> None:
    spec = build("mobilenet-graph", IMAGENET, 1_000, {"width": 0.225, "small": True}, op="xnor")
    topology = spec.topology
    assert topology.scopes[-1].name == "classifier"
    assert topology.scopes[-1].budget == 230_400  # 0.225 · 1024 · 1000
    operator = topology.bundle("classifier").op
    assert operator is not None
    assert operator.name == "dense"
    assert topology.groups[-2].steps == ("norm", "act", "pool")
    assert topology.output.size == 1_000
    network = build_network(spec)
    assert list(network.head.parameters()) == []
    parameters = sum(int(scope.live.sum()) for _, scope in network.graph.wirings())
    assert parameters == 158_944 + 230_400


@pytest.mark.parametrize(("image", "stem", "sides"), [(CIFAR, 1, (32, 2)), (IMAGENET, 2, (112, 7))])
def test_resolution_halves_at_the_input_of_each_stage_but_the_first(
    image: ImageShape, stem: int, sides: tuple[int, int]
) -> None:
    spec = build("mobilenet-graph", image, 10, {"size": "eighth"})
    network = build_network(spec).eval()
    assert spec.stem.stride == stem
    stem_out = network.stem(torch.zeros(1, image.channels, image.side, image.side))
    assert (stem_out.shape[-1], network.graph(stem_out).shape[-1]) == sides
    strides = {group.name: group.stride for group in spec.topology.groups}
    assert {name for name, stride in strides.items() if stride == 2} == {
        "s1l1",
        "s2l2",
        "s3l2",
        "s4l2",
    }


def test_a_layer_reads_all_earlier_layers_of_its_stage_and_none_of_another() -> None:
    topology = build("mobilenet-graph", CIFAR, 10, {"size": "full"}).topology
    assert topology.bundle("s4l1").sources == ("s3l2",)
    assert topology.bundle("s4l4").sources == ("s3l2", "s4l1", "s4l2", "s4l3")
    assert topology.bundle("s5l1").sources == ("s4l6",)
    assert topology.output.steps == ("norm", "act")


@pytest.mark.parametrize(
    ("image", "expected"), [(DIGITS, 8), (ImageShape(channels=3, side=64), 32), (IMAGENET, 32)]
)
def test_small_images_get_a_quarter_of_the_channels_unless_told_otherwise(
    image: ImageShape, expected: int
) -> None:
    assert build("mobilenet-graph", image, 10, {}).topology.input.size == expected
    assert build("mobilenet-graph", image, 10, {"size": "full"}).topology.input.size == 32


@pytest.mark.parametrize("size", ["full", "half", "quarter", "eighth"])
def test_every_size_has_five_stages_and_any_multiplier_a_budget(size: str) -> None:
    space = SPACES.get("mobilenet-graph")({"size": size})
    assert isinstance(space, MobileNetGraph)
    assert len(space.stages(DIGITS)) == 5
    choices = space.choices(DIGITS)
    for end in ("low", "high"):
        values = space.defaults(DIGITS)
        values |= {key: getattr(choices[key], end) for key in values if key.startswith("width")}
        assert len(space.build(values, DIGITS, 10).topology.scopes) == 5


# -- tiny ----------------------------------------------------------------------------------


def test_tiny_has_800_nodes_and_32000_of_264960_edges() -> None:
    topology = build("tiny", CIFAR, 10, {}).topology
    [scope] = topology.scopes
    assert sum(group.size for group in topology.groups if group.name != "out") == 800
    assert scope.budget == 32_000
    assert topology.usable_edges(scope) == 264_960
    assert 1 - topology.usable_edges(scope) / 800**2 == pytest.approx(0.586, abs=5e-4)


def test_tiny_has_41362_parameters_besides_its_norms() -> None:
    network = build_network(build("tiny", CIFAR, 10, {}))
    live = sum(int(scope.live.sum()) for _, scope in network.graph.wirings())
    others = [
        sum(p.numel() for p in module.parameters(recurse=False))
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert live + sum(others) == 41_362


def test_tiny_reads_out_what_its_last_nodes_got_together_with_their_edges() -> None:
    spec = build("tiny", CIFAR, 10, {})
    [skip] = spec.topology.skips
    assert (skip.source, skip.destination) == ("b4", "out")
    assert skip.reads(100) == tuple(range(92, 192))
    network = build_network(spec).eval()
    sums: dict[str, torch.Tensor] = {}
    network.graph.nodes["b4"].register_forward_pre_hook(lambda _, inputs: sums.update(b4=inputs[0]))
    network.graph.nodes["out"].register_forward_pre_hook(
        lambda _, inputs: sums.update(out=inputs[0])
    )
    nn.init.zeros_(network.graph.op("out").weight)
    network(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert sums["out"].shape == (2, 100, 8, 8)
    assert torch.equal(sums["out"], sums["b4"][:, 92:])


def test_tiny_trains_with_the_papers_schedule_at_the_papers_length() -> None:
    settings = SPACES.get("tiny")({}).train(CIFAR, epochs=160, images=45_000)
    train = parse(TrainConfig, {"epochs": 160, **settings})
    assert (train.batch_size, train.schedule, train.milestones) == (512, "step", (80, 120))
    assert (train.decay, train.weight_decay, train.momentum) == (0.1, 1e-4, 0.9)


def test_tiny_refuses_images_of_which_its_stem_leaves_one_pixel() -> None:
    with pytest.raises(ConfigError, match="at least 5 pixels a side, got 4"):
        build("tiny", ImageShape(channels=1, side=4), 10, {})


# -- graph-file ----------------------------------------------------------------------------


def test_a_brought_graph_keeps_its_edges_and_gets_node_functions(
    options: dict[str, dict[str, Any]],
) -> None:
    topology = build("graph-file", DIGITS, 10, options["graph-file"], density=0.5).topology
    [scope] = topology.scopes
    assert topology.usable_edges(scope) == 7
    assert scope.budget == 4
    assert topology.input.size == 2
    assert {group.steps for group in topology.groups[:-1]} == {("norm", "act", "depthwise")}
    assert topology.output.steps == ("norm", "act")


def test_an_exported_graph_comes_back_with_its_own_scopes_and_node_functions(
    tmp_path: Path,
) -> None:
    original = Topology(
        groups=(
            NodeGroup(name="in", size=2, steps=("act", "depthwise"), stride=2),
            NodeGroup(name="mid", size=3, norm="instance", steps=("norm",)),
            NodeGroup(name="out", size=4),
        ),
        bundles=(
            Bundle(name="first", sources=("in",), destination="mid"),
            Bundle(name="second", sources=("in", "mid"), destination="out"),
        ),
        scopes=(Scope(name="s1", bundles=("first",)), Scope(name="s2", bundles=("second",))),
    )
    path = tmp_path / "graph.graphml"
    write_graph(path, to_networkx(original))
    topology = build("graph-file", DIGITS, 10, {"path": str(path)}, density=0.5).topology
    assert topology.groups == original.groups
    assert {scope.name: scope.budget for scope in topology.scopes} == {"s1": 3, "s2": 10}


@pytest.mark.parametrize(
    ("edges", "rule"),
    [([("a", "b"), ("b", "a")], "cycle"), ([("a", "b"), ("b", "z")], "z"), ([], "empty|isolated")],
)
def test_a_brought_graph_that_breaks_a_rule_is_refused(
    tmp_path: Path, edges: list[tuple[str, str]], rule: str
) -> None:
    path = tmp_path / "bad.json"
    links = [{"source": source, "target": target} for source, target in edges]
    nodes = [{"id": node} for node in "ab"]
    path.write_text(json.dumps({"directed": True, "graph": {}, "nodes": nodes, "edges": links}))
    with pytest.raises(TopologyError, match=rule):
        build("graph-file", DIGITS, 10, {"path": str(path)})


def test_graph_file_without_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="space graph-file: key 'path' is missing"):
        SPACES.get("graph-file")({})


# -- every space ---------------------------------------------------------------------------


@pytest.fixture
def space(name: str, options: dict[str, dict[str, Any]]) -> Space:
    return SPACES.get(name)(options.get(name, {}))


@ALL
def test_defaults_and_choices_have_the_same_keys_and_agree(space: Space) -> None:
    choices = space.choices(DIGITS)
    defaults = space.defaults(DIGITS)
    assert list(defaults) == list(choices)
    assert {"op", "rule", "lr", "seed"} <= set(choices)
    assert settle(choices, defaults) == defaults


@ALL
def test_a_network_of_the_defaults_maps_images_to_class_scores(space: Space) -> None:
    network = build_network(space.build(space.defaults(DIGITS), DIGITS, 10)).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@ALL
def test_every_point_of_a_space_builds_and_survives_json(space: Space) -> None:
    rng = np.random.default_rng(0)
    choices = space.choices(DIGITS)
    for _ in range(3):
        values = {key: sample(choice, rng) for key, choice in choices.items()}
        spec = space.build(values, DIGITS, 10)
        assert (spec.space, spec.choices) == (space.name, values)
        assert parse(ModelSpec, json.loads(json.dumps(spec.to_dict()))) == spec


@ALL
def test_operators_and_rules_may_carry_options(space: Space) -> None:
    op = {"name": "xnor", "input_scale": True}
    spec = space.build({**space.defaults(DIGITS), "op": op, "rule": "random"}, DIGITS, 10)
    assert (spec.op.name, spec.op.options) == ("xnor", {"input_scale": True})
    assert (spec.rule.name, spec.rule.options) == ("random", {})


@ALL
@pytest.mark.parametrize("epochs", [1, 2, 3, 12, 160])
@pytest.mark.parametrize("images", [20, 1_222, 50_000, 1_200_000])
def test_training_settings_are_valid_and_fit_the_number_of_images(
    space: Space, epochs: int, images: int
) -> None:
    settings = space.train(DIGITS, epochs=epochs, images=images)
    train = parse(TrainConfig, {"epochs": epochs, **settings})
    assert all(milestone < epochs for milestone in train.milestones)
    assert train.batch_size <= max(8, images // 32)


@ALL
def test_a_mutation_changes_one_choice_and_stays_in_the_space(space: Space) -> None:
    rng = np.random.default_rng(0)
    choices = space.choices(DIGITS)
    values = space.defaults(DIGITS)
    changed = set()
    for _ in range(150):
        mutant = space.mutate(values, choices, rng)
        [key] = [key for key in choices if mutant[key] != values[key]]
        changed.add(key)
        values = settle(choices, mutant)
    assert changed == {key for key, choice in choices.items() if not choice.single()}


@ALL
def test_an_unknown_option_of_a_space_is_refused(
    space: Space, name: str, options: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match=f"space {name}: unknown key 'colour'"):
        SPACES.get(name)({**options.get(name, {}), "colour": "red"})


# -- choices -------------------------------------------------------------------------------

CHOICES: dict[str, BaseDistribution] = {
    "width.s1": FloatDistribution(0.15, 1.0, log=True),
    "edges": IntDistribution(8, 64, log=True),
    "op": CategoricalDistribution(("dense", "xnor")),
    "seed": CategoricalDistribution((0,)),
}


def test_a_narrowed_choice_leaves_one_value_and_the_others_free() -> None:
    narrowed = narrow(CHOICES, {"width.s1": 1, "op": "xnor"})
    assert narrowed["width.s1"] == CategoricalDistribution((1.0,))
    assert narrowed["op"].single()
    assert narrowed["edges"] == CHOICES["edges"]


def test_a_list_narrows_to_its_values_once_each() -> None:
    narrowed = narrow(CHOICES, {"op": ["xnor", "dense", "xnor"], "seed": [0, 1, 2]})
    assert narrowed["op"] == CategoricalDistribution(("xnor", "dense"))
    assert narrowed["seed"] == CategoricalDistribution((0, 1, 2))


@pytest.mark.parametrize(
    ("fixed", "sentence"),
    [
        ({"width.s": 0.5}, "no choice 'width.s'; did you mean width.s1"),
        ({"width.s1": 1.5}, r"a number in 0.15..1.0, got 1.5"),
        ({"width.s1": "wide"}, "a number in 0.15..1.0, got 'wide'"),
        ({"width.s1": float("nan")}, "a number in 0.15..1.0, got nan"),
        ({"edges": 8.5}, "a whole number in 8..64, got 8.5"),
        ({"edges": True}, "a whole number in 8..64, got True"),
        ({"edges": float("inf")}, "a whole number in 8..64, got inf"),
        ({"op": "xnro"}, "cannot be 'xnro'; did you mean xnor"),
        ({"op": []}, "at least one value"),
        ({"seed": -1}, "whole number of at least 0, got -1"),
    ],
)
def test_a_value_that_a_choice_cannot_have_is_refused(fixed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        narrow(CHOICES, fixed)


def test_settling_needs_a_value_where_the_default_was_ruled_out() -> None:
    narrowed = narrow(CHOICES, {"op": ["dense", "xnor"], "edges": [8, 16]})
    with pytest.raises(ConfigError, match="'edges' cannot be 32"):
        settle(narrowed, {"width.s1": 0.2, "edges": 32, "op": "dense", "seed": 0})


@pytest.mark.parametrize("value", [1, 4])
def test_a_mutation_at_the_end_of_a_range_moves_inwards(value: int) -> None:
    choices: dict[str, BaseDistribution] = {
        "layers": IntDistribution(1, 4),
        "width": FloatDistribution(1.0, 4.0),
    }
    rng = np.random.default_rng(0)
    for _ in range(50):
        start = {"layers": value, "width": float(value)}
        mutant = mutate(start, choices, rng)
        assert mutant != start
        assert 1 <= mutant["layers"] <= 4
        assert 1.0 <= mutant["width"] <= 4.0


def test_where_nothing_varies_a_mutation_is_a_copy() -> None:
    values = {"seed": 0}
    mutant = mutate(values, {"seed": CHOICES["seed"]}, np.random.default_rng(0))
    assert mutant == values
    assert mutant is not values


def test_samples_of_a_logarithmic_choice_are_as_often_below_its_geometric_mean() -> None:
    rng = np.random.default_rng(0)
    choice = FloatDistribution(0.01, 1.0, log=True)
    below = np.mean([sample(choice, rng) < 0.1 for _ in range(1_000)])
    assert below == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("images", "expected"), [(1_222, 32), (60_000, 128), (100, 8), (4_100, 128)]
)
def test_a_batch_is_small_enough_for_32_steps_an_epoch(images: int, expected: int) -> None:
    assert batch_size(images, 128) == expected
