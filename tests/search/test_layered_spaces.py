"""Layered networks: the papers' counts, torchvision's functions, both orders, random wirings."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from search.cli.options import study_config
from search.spaces.base import SPACES
from search.spaces.layered import LayeredSpace
from wiring.compact import compact
from wiring.compiled import compile as compile_network
from wiring.config import parse
from wiring.errors import ConfigError, DataError, TopologyError, WiringError
from wiring.graph.costs import cost_table, total_cost
from wiring.graph.driving import attach
from wiring.graph.generators import barabasi_albert, erdos_renyi, watts_strogatz
from wiring.graph.measure import dead_nodes
from wiring.graph.topology import Topology
from wiring.network import ImageShape, ModelSpec, Network, build_network
from wiring.pretrained import adopt
from workers.pretrained import start_from_pretrained
from workers.spec import TrainConfig, TrialSpec
from workers.train import Trainer

MNIST = ImageShape(channels=1, side=28)
CIFAR = ImageShape(channels=3, side=32)
TINY = ImageShape(channels=3, side=16)
MIDDLE = ImageShape(channels=3, side=72)
IMAGENET = ImageShape(channels=3, side=224)
LAYERED = [name for name in SPACES.names() if issubclass(SPACES.get(name), LayeredSpace)]
TORCHVISION: dict[str, tuple[Any, Any, int, int]] = {
    "resnet18": (
        models.resnet18,
        models.ResNet18_Weights.IMAGENET1K_V1,
        11_689_512,
        1_814_073_344,
    ),
    "resnet50": (
        models.resnet50,
        models.ResNet50_Weights.IMAGENET1K_V1,
        25_557_032,
        4_089_184_256,
    ),
    "alexnet": (models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1, 61_100_840, 714_188_480),
}
OPS = ("dense", "xnor", "adder", "bwn")


def build(
    name: str, image: ImageShape, classes: int = 10, options: Any = None, **values: Any
) -> ModelSpec:
    space = SPACES.get(name)(options or {})
    return space.build({**space.defaults(image), **values}, image, classes)


def products(network: Network) -> int:
    """Multiplications of weights with values: all but those of norms."""
    rows = cost_table(network)
    return sum(row.cost.multiplications for row in rows if row.kind != "norm")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(model: nn.Module, side: int) -> int:
    """Of a PyTorch model's convolutions and linear layers for one image, counted by hooks."""
    found = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal found
        assert isinstance(module.weight, Tensor)
        found += module.weight.numel() * math.prod(output.shape[2:])

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.device("meta"):
        x = torch.empty(1, 3, side, side)
    model.to("meta").eval()(x)
    for hook in hooks:
        hook.remove()
    return found


def trained(model: ModelSpec, steps: int = 2) -> Network:
    """After a few steps, so that no weight has its first value; in evaluation mode."""
    network = build_network(model).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    attach(network, optimizer, steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        x = images(model.image, 6, generator)
        loss = nn.functional.cross_entropy(network(x), torch.arange(6) % model.classes)
        torch.autograd.backward(loss)
        optimizer.step()
    return network.eval()


def images(image: ImageShape, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, image.channels, image.side, image.side, generator=generator)


# -- counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_and_multiply_adds_are_torchvisions(name: str) -> None:
    make, _, expected, operations = TORCHVISION[name]
    options = {"norm": False} if name == "alexnet" else {}
    network = build_network(build(name, IMAGENET, 1_000, options))
    with torch.device("meta"):
        theirs = make()
    assert parameters(network) == parameters(theirs) == expected
    assert products(network) == multiply_adds(theirs, 224) == operations


def test_mobilenet_has_the_papers_4_2m_parameters_and_569m_multiply_adds() -> None:
    network = build_network(build("mobilenet", IMAGENET, 1_000))
    assert parameters(network) == 4_231_976
    assert products(network) == 568_740_352


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("lenet5-bn", MNIST, {}, 416_520),
        ("resnet20", CIFAR, {}, 40_813_184),  # AdderNet prints 41.17M, and for ResNet-32
        ("resnet32", CIFAR, {}, 69_124_736),  # 69.12M, which the same count gives
        ("vgg-small", CIFAR, {}, 607_600_640),  # AdderNet prints 0.65G
        ("vgg-small", CIFAR, {"seventh": True}, 645_349_376),
        ("vgg9", CIFAR, {}, 616_966_144),
        ("mlp", MNIST, {"hidden": 2, "units": 300}, 784 * 300 + 300 * 300 + 300 * 10),
    ],
)
def test_the_weight_products_of_small_image_networks(
    name: str, image: ImageShape, options: dict[str, Any], expected: int
) -> None:
    assert products(build_network(build(name, image, 10, options))) == expected


def test_lenets_435k_count_two_operations_a_normed_value_and_four_a_pooled_one() -> None:
    network = build_network(build("lenet5-bn", MNIST))
    norms = sum(row.cost.multiplications for row in cost_table(network) if row.kind == "norm")
    pooled = 6 * 14**2 + 16 * 5**2
    assert products(network) + 2 * norms + 4 * pooled == 435_840


@pytest.mark.parametrize("name", ["lenet5-bn", "vgg-small", "resnet20", "resnet32"])
def test_adders_have_no_products_and_twice_the_additions_but_in_first_and_last_layer(
    name: str,
) -> None:
    image = MNIST if name == "lenet5-bn" else CIFAR
    dense, adder = (
        {row.name: row.cost for row in cost_table(build_network(spec)) if row.kind == "edges"}
        for spec in (build(name, image), build(name, image, op="adder"))
    )
    for layer in dense:
        if layer in ("conv1", "classes"):
            assert adder[layer] == dense[layer]
        else:
            assert adder[layer].multiplications == 0
            assert adder[layer].additions == 2 * dense[layer].multiplications


def test_resnet50_wires_all_layers_or_all_but_the_first() -> None:
    wired = {
        first: build(
            "resnet50", IMAGENET, 1_000, {"wire_first": first, "wire_last": True}, density=0.1
        ).topology
        for first in (True, False)
    }
    budgets = {
        first: [scope.budget for scope in topology.scopes] for first, topology in wired.items()
    }
    assert None not in budgets[True]
    assert budgets[False] == [None, *budgets[True][1:]]
    assert budgets[True][0] == math.ceil(0.1 * 64 * 3 * 49)
    assert wired[True].output.steps == ()  # no bias
    live = sum(budget or 0 for budget in budgets[True])
    assert live == pytest.approx(0.1 * (25_557_032 - 1_000 - 53_120), rel=1e-4)


def test_layers_share_edges_by_the_scheme_that_is_asked_for() -> None:
    def budgets(scheme: str) -> list[int | None]:
        options = {"scheme": scheme}
        topology = build("resnet20", CIFAR, 10, options, density=0.1).topology
        return [scope.budget for scope in topology.scopes if scope.budget is not None]

    uniform, kernel, [pool] = budgets("uniform"), budgets("erk"), budgets("pool")
    assert kernel != uniform
    assert sum(b or 0 for b in kernel) == pool == pytest.approx(sum(map(int, uniform)), abs=30)


# -- torchvision's weights -----------------------------------------------------------------


def torchvision_model(name: str) -> nn.Module:
    """Random weights, and random moments of norms."""
    torch.manual_seed(0)
    model: nn.Module = TORCHVISION[name][0]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", TORCHVISION)
def test_with_torchvisions_weights_the_function_is_torchvisions(name: str) -> None:
    network = build_network(build(name, IMAGENET, 1_000, {"pretrained": True})).eval()
    model = torchvision_model(name)
    adopt(network, model.state_dict())
    x = images(IMAGENET, 1, torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = network(x), model(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_spec_names_torchvisions_file_and_its_digest(name: str) -> None:
    source = build(name, IMAGENET, 1_000, {"pretrained": True}).pretrained
    assert source is not None
    assert source.url == TORCHVISION[name][1].url
    assert f"-{source.digest}." in source.url


def resnet18(classes: int, side: int = 72, **values: Any) -> Network:
    image = ImageShape(channels=3, side=side)
    return build_network(build("resnet18", image, classes, {"pretrained": True}, **values))


def test_with_other_classes_all_but_the_classifier_is_taken_over() -> None:
    network = resnet18(10)
    before = network.graph.op("classes").weight.clone()
    state = torchvision_model("resnet18").state_dict()
    assert network.spec.pretrained is not None
    assert not network.spec.pretrained.classifier
    adopt(network, state, classifier=False)
    assert torch.equal(network.graph.op("classes").weight, before)
    assert torch.equal(network.graph.op("conv1").weight, state["conv1.weight"])


def test_the_first_wiring_is_that_of_the_pretrained_weights() -> None:
    network = resnet18(10, density=0.25)
    adopt(network, torchvision_model("resnet18").state_dict(), classifier=False)
    weight = network.graph.op("s1b1c1").weight.detach().abs()
    live = network.graph.live()["s1b1c1"]
    assert weight[live].min() >= weight[~live].max()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"conv1.weight": torch.zeros(64, 3, 5, 5)}, r"'conv1' is \[64, 3, 7, 7\] here"),
        ({"extra.weight": torch.zeros(1, 1)}, "there is no bundle for 'extra'"),
        ({"fc.bias": None}, "they have nothing for 'graph.nodes.classes.bias.bias'"),
        ({"conv1.bias": torch.zeros(64)}, "no node here has the bias of 'conv1'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Tensor | None], sentence: str
) -> None:
    network = resnet18(1_000)
    state = {**torchvision_model("resnet18").state_dict(), **change}
    with pytest.raises(WiringError, match=sentence):
        adopt(network, {key: value for key, value in state.items() if value is not None})


def test_offline_a_missing_file_of_weights_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(DataError, match=r"cannot be fetched from https.*\(no route to host\)"):
        start_from_pretrained(resnet18(10), seed=0)


def test_a_file_of_weights_that_is_there_is_used_after_its_digest_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / "resnet18-f37072fd.pth"
    state = torchvision_model("resnet18").state_dict()
    torch.save(state, path)
    network = resnet18(10)
    with pytest.raises(DataError, match=r"begins with [0-9a-f]{8}, not with f37072fd"):
        start_from_pretrained(network, seed=0)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    source = network.spec.pretrained
    assert source is not None
    network.spec = network.spec.model_copy(update={"pretrained": source.replace(digest=digest)})
    start_from_pretrained(network, seed=0)
    assert torch.equal(network.graph.op("conv1").weight, state["conv1.weight"])


def test_a_trial_trains_from_the_weights_that_its_spec_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torchvision_model("resnet18").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    monkeypatch.setattr("workers.pretrained.fetch", lambda source: tmp_path / "weights.pth")
    spec = TrialSpec(model=build("resnet18", MIDDLE, 10, {"pretrained": True}))
    assert parse(TrialSpec, spec.to_dict()).digest() == spec.digest()
    data: Any = SimpleNamespace(steps=lambda batch: 1, counts={"train": 32})
    trainer = Trainer(spec, data, torch.device("cpu"))
    assert torch.equal(trainer.network.graph.op("s4b2c2").weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("name", "image", "options", "op", "need"),
    [
        ("resnet18", CIFAR, {}, "dense", "the large form; images of 32 pixels"),
        ("resnet50", IMAGENET, {"width": 0.5}, "dense", "a width of 1, got 0.5"),
        ("resnet18", IMAGENET, {"wire_last": True}, "dense", "a classifier with bias"),
        ("resnet18", ImageShape(channels=1, side=224), {}, "dense", "3 channels, got 1"),
        ("resnet18", IMAGENET, {}, "xnor", "operator 'xnor' needs them behind"),
        ("alexnet", IMAGENET, {"norm": True}, "dense", "norm=false"),
    ],
)
def test_what_cannot_start_from_pretrained_weights_says_what_it_lacks(
    name: str, image: ImageShape, options: dict[str, Any], op: str, need: str
) -> None:
    with pytest.raises(ConfigError, match=need):
        build(name, image, 1_000, {"pretrained": True, **options}, op=op)


def test_the_flag_pretrained_reaches_the_space_and_is_refused_where_there_are_no_weights() -> None:
    config = study_config(None, None, space="alexnet", space__pretrained=True)
    assert config.space.options == {"pretrained": True}
    with pytest.raises(ConfigError, match="space lenet5-bn: unknown key 'pretrained'"):
        SPACES.get("lenet5-bn")({"pretrained": True})


# -- residual networks ---------------------------------------------------------------------


@pytest.mark.parametrize(("op", "pre"), [("dense", False), ("adder", False), ("xnor", True)])
def test_only_operators_that_see_signs_alone_get_the_norm_first(op: str, pre: bool) -> None:
    topology = build("resnet20", CIFAR, op=op).topology
    assert ("s1b1" in {group.name for group in topology.groups}) is not pre
    assert {skip.carries for skip in topology.skips} == {"sum" if pre else "value"}


@pytest.mark.parametrize("image", [CIFAR, MIDDLE])
@pytest.mark.parametrize("name", [n for n in LAYERED if n not in ("lenet5-bn", "mlp")])
def test_binary_layers_never_read_values_of_one_sign(name: str, image: ImageShape) -> None:
    network = build_network(build(name, image, 10, {"width": 0.25}, op="xnor")).train()
    shares: dict[str, Tensor] = {}
    for bundle in network.spec.topology.bundles:
        if bundle.op is None:
            network.graph.op(bundle.name).register_forward_pre_hook(
                lambda _, inputs, key=bundle.name: shares.update({key: (inputs[0] >= 0).float()})
            )
    network(images(image, 4, torch.Generator().manual_seed(0)))
    assert len(shares) > 3
    assert all(0.02 < float(share.mean()) < 0.98 for share in shares.values())


# -- what all of them hold -----------------------------------------------------------------


@pytest.fixture
def last_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes the last form of every bundle, without the time of measuring them."""

    def rank(forms: dict[str, Any]) -> dict[str, float]:
        return {name: float(-place) for place, name in enumerate(forms)}

    monkeypatch.setattr("wiring.compiled.forms.measure", rank)
    monkeypatch.setattr("wiring.compiled.network.measure", rank)


def small(name: str, op: str, image: ImageShape = TINY) -> Network:
    # Half of the edges, so that compaction has something to remove; few nodes, for speed.
    options = {"width": 0.1, **({"nodes": 4} if name == "randwire" else {})}
    return trained(build(name, image, 10, options, op=op, density=0.2, rule="random"))


@pytest.mark.usefixtures("last_form")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", LAYERED)
def test_compacted_and_compiled_networks_compute_what_evaluation_does(name: str, op: str) -> None:
    network = small(name, op)
    x = images(TINY, 3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
    # One sign turned over would show in the third digit: below are roundings of the last layer.
    within = 3e-6 * float(expected.abs().max())
    torch.testing.assert_close(compact(network)(x), expected, rtol=0, atol=within)
    compiled = compile_network(network, cache=False)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=within)


@pytest.mark.usefixtures("last_form")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet", "alexnet", "randwire"])
def test_the_large_forms_compile_too(name: str) -> None:
    network = small(name, "dense", MIDDLE)
    x = images(MIDDLE, 2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
    within = 3e-6 * float(expected.abs().max())
    compiled = compile_network(network, cache=False)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=within)


@pytest.mark.parametrize("name", LAYERED)
def test_compaction_costs_no_more_than_is_said(name: str) -> None:
    network = small(name, "dense")
    assert total_cost(compact(network)) == total_cost(network)
    assert dead_nodes(compact(network).graph) <= dead_nodes(network.graph)


@pytest.mark.parametrize(
    ("name", "layer"), [("vgg-small", "the pooling of 'conv6'"), ("alexnet", "of 'conv5'")]
)
def test_images_that_a_window_does_not_fit_into_are_refused(name: str, layer: str) -> None:
    with pytest.raises(ConfigError, match=f"images are too small: .*{layer} slides 2 pixels"):
        build(name, ImageShape(channels=1, side=4))


def test_training_settings_are_the_papers() -> None:
    def settings(name: str, image: ImageShape, epochs: int) -> TrainConfig:
        space = SPACES.get(name)({})
        found = space.train(image, epochs=epochs, images=60_000)
        return TrainConfig(epochs=epochs, **found)

    lenet = settings("lenet5-bn", MNIST, 50)
    assert (lenet.batch_size, lenet.weight_decay, lenet.schedule) == (256, 5e-4, "cosine")
    assert SPACES.get("lenet5-bn")({}).defaults(MNIST)["lr"] == 0.1
    sparse = settings("resnet50", IMAGENET, 100)
    assert (sparse.batch_size, sparse.momentum, sparse.weight_decay) == (256, 0.875, 3.05e-5)
    assert (sparse.label_smoothing, sparse.warmup_epochs) == (0.1, 5)
    assert SPACES.get("resnet50")({}).defaults(IMAGENET)["lr"] == 0.256


# -- random wirings ------------------------------------------------------------------------

GRAPHS: list[nx.DiGraph] = [
    erdos_renyi(16, 0.3, seed=3),
    barabasi_albert(16, 3, seed=3),
    watts_strogatz(16, 4, 0.75, seed=3),
]


@pytest.mark.parametrize("graph", GRAPHS, ids=["er", "ba", "ws"])
def test_a_generated_graph_is_acyclic_with_edges_from_lower_to_higher_nodes(
    graph: nx.DiGraph,
) -> None:
    assert list(graph) == list(range(16))
    assert graph.number_of_edges() > 10
    assert all(source < destination for source, destination in graph.edges)


def test_generated_graphs_have_the_generators_numbers_of_edges_and_follow_the_seed() -> None:
    assert barabasi_albert(16, 3, seed=0).number_of_edges() == 3 * 13
    assert watts_strogatz(16, 4, 0.75, seed=0).number_of_edges() == 32
    first, again, other = (set(erdos_renyi(16, 0.3, seed=seed).edges) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(TopologyError, match="no random graph with settings"):
        barabasi_albert(4, 4, seed=0)


def random_stage(**values: Any) -> tuple[Topology, nx.DiGraph]:
    """The first stage's random graph as the topology has it."""
    topology = build("randwire", CIFAR, 10, {"nodes": 6, "channels": 4}, **values).topology
    graph = nx.DiGraph()
    graph.add_nodes_from(range(6))
    for skip in topology.skips:
        if skip.gate and skip.source.startswith("s1n"):
            graph.add_edge(int(skip.source[3:-1]), int(skip.destination[3:]))
    return topology, graph


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        ("er", erdos_renyi(6, 0.5, seed=7)),
        ("ba", barabasi_albert(6, 2, seed=7)),
        ("ws", watts_strogatz(6, 4, 0.5, seed=7)),
    ],
)
def test_a_stage_is_wired_as_the_chosen_generator_says(
    generator: str, expected: nx.DiGraph
) -> None:
    values = {"er.p": 0.5, "ba.m": 2, "ws.k": 4, "ws.p": 0.5, "graph_seed": 2}
    topology, graph = random_stage(generator=generator, **values)
    assert set(graph.edges) == set(expected.edges)
    reads_input = {s.destination for s in topology.skips if s.source == "conv1"}
    assert reads_input == {f"s1n{node}" for node in expected if not expected.in_degree(node)}
    outputs = {s.source for s in topology.skips if s.destination == "s1"}
    assert outputs == {f"s1n{node}c" for node in expected if not expected.out_degree(node)}


def test_a_gate_weighs_an_edge_by_a_sigmoid_that_learns() -> None:
    network = build_network(build("randwire", CIFAR, 10, {"nodes": 6, "channels": 4}))
    gates = list(network.graph.gates.parameters())
    assert len(gates) == sum(skip.gate for skip in network.spec.topology.skips) > 0
    before = network.eval()(torch.ones(1, 3, 32, 32))
    with torch.no_grad():
        gates[0].fill_(3.0)
    assert not torch.equal(network(torch.ones(1, 3, 32, 32)), before)
    network.train()
    loss = network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sum()
    torch.autograd.backward(loss)
    assert all(gate.grad is not None for gate in gates)


def test_randwire_has_the_size_of_the_papers_small_network() -> None:
    network = build_network(build("randwire", IMAGENET, 1_000))
    assert parameters(network) == pytest.approx(5.6e6, rel=0.02)
    assert products(network) == pytest.approx(583e6, rel=0.02)
