"""Nodes leave any PyTorch network, and what is left computes what it should."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18
from torchvision.models.vgg import make_layers

from wiring.errors import ConfigError, WiringError
from wiring.graph.node_rules import NODE_RULES, NodeRule, Nodes
from wiring.methods.dense import Dense
from wiring.models.removal import remove_nodes

SIDE = 8
PLAN: list[str | int] = [16, "M", 32, "M", 64, 64, "M", 32]


class OddGo(NodeRule):
    """Every other node goes."""

    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        return torch.arange(nodes.size) % 2 == 0


class Residual(nn.Module):
    """A skip around two convolutions with norms, depthwise filters, and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inside = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.inside_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.outside = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6 * SIDE * SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.inside_norm(self.inside(x)).relu()
        y = self.outside(self.depthwise(y))
        scores: Tensor = self.fc((x + y).relu().flatten(1))
        return scores


class Joined(nn.Module):
    """Densely connected: each layer reads all before it, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.third = nn.Conv2d(10, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = torch.cat([x, self.second(x).relu()], dim=1)
        x = self.third(self.norm(x).relu()).relu()
        scores: Tensor = self.fc(x.mean(dim=(2, 3)))
        return scores


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with norms that have seen something, in float64 and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def batches(count: int = 2, side: int = SIDE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]


def silenced(weight: Tensor, columns: list[int]) -> None:
    with torch.no_grad():
        weight[:, columns] = 0


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def test_coupled_channels_go_together_and_say_nothing_to_their_readers() -> None:
    model = made(Residual)
    reference = copy.deepcopy(model)
    silenced(reference.inside.weight, [1, 3, 5])
    silenced(reference.outside.weight, [1, 3, 5, 7])
    silenced(reference.fc.weight, [i for c in (1, 3, 5) for i in range(64 * c, 64 * (c + 1))])
    report = remove_nodes(model, OddGo(), batches())
    assert widths(model) == {
        "stem": (3, 3),
        "inside": (4, 3),
        "depthwise": (4, 1),
        "outside": (3, 4),
        "fc": (4, 3 * 64),
    }
    assert report.lines() == ["stem, outside: 6 → 3", "inside: 8 → 4", "fc: 4, is handed out"]
    assert report.removed == 7
    x = batches()[0]
    torch.testing.assert_close(model(x), reference(x))


def test_concatenated_channels_are_followed_to_where_they_stand() -> None:
    model = made(Joined)
    reference = copy.deepcopy(model)
    silenced(reference.second.weight, [1, 3])
    silenced(reference.third.weight, [1, 3, 5, 7, 9])
    silenced(reference.fc.weight, [1, 3])
    report = remove_nodes(model, OddGo(), batches())
    assert [group.after for group in report.groups] == [2, 3, 2, 3]
    x = batches()[0]
    torch.testing.assert_close(model(x), reference(x))
    assert model.norm.num_features == 5


def twins(model: nn.Module, names: list[str], pairs: dict[int, int]) -> None:
    """Make channels of layers and norms equal to others."""
    with torch.no_grad():
        for name in names:
            for tensor in model.get_submodule(name).state_dict().values():
                for twin, original in pairs.items():
                    if tensor.dim():
                        tensor[twin] = tensor[original].clone()


@pytest.mark.parametrize("rule", ["merge", "dpp"])
def test_twins_merge_without_a_trace(rule: str) -> None:
    model = made(Residual)
    twins(model, ["stem", "norm", "outside"], {1: 0, 3: 2, 5: 4})
    twins(model, ["inside", "inside_norm", "depthwise"], {4: 0, 5: 1, 6: 2, 7: 3})
    x = batches()[0]
    before = model(x)
    options = {"share": 0.5} if rule == "merge" else {"epsilon": 1e-9}
    remove_nodes(model, NODE_RULES.get(rule)(options), batches())
    assert widths(model)["inside"] == (4, 3)
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)


def test_equal_weights_behind_different_norms_are_no_twins() -> None:
    model = made(Residual)
    twins(model, ["inside", "inside_norm", "depthwise"], {3: 2, 6: 5})
    with torch.no_grad():
        model.inside_norm.running_mean[[5, 6]] = model.inside_norm.bias[[5, 6]] = 0
        model.inside_norm.weight[6] *= -1
    before = model.inside.weight.clone()
    remove_nodes(
        model, NODE_RULES.get("merge")({"share": 0.125}), batches(), keep=("stem", "outside")
    )
    assert torch.equal(model.inside.weight, before[[0, 1, 2, 4, 5, 6, 7]])


def test_what_is_kept_keeps_its_nodes_and_the_report_says_why() -> None:
    model = made(Residual)
    report = remove_nodes(model, OddGo(), batches(), keep=("first",))
    assert widths(model)["stem"] == (6, 3)
    assert widths(model)["inside"] == (4, 6)
    assert report.lines()[0] == (
        "stem, outside: 6, 'stem' is kept: it is the first layer (keep='first')"
    )
    with pytest.raises(ConfigError, match="no layer matches 'outsde'; did you mean outside"):
        remove_nodes(model, OddGo(), batches(), keep=("outsde",))


class Odd(nn.Module):
    """Channels that are handed out, grouped, normed in groups, or shared."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.b = nn.Conv2d(8, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.c = nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.e = nn.Conv2d(8, 8, 1)
        self.f = nn.Conv2d(8, 8, 1)
        self.f.weight = self.e.weight
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c = self.c(self.norm(self.b(self.grouped(self.a(x)))))
        return self.last(self.f(self.e(self.d(c.relu()) * self.scale))), c


def test_what_cannot_lose_single_nodes_is_left_whole_with_a_reason() -> None:
    model = made(Odd)
    before = widths(model)
    report = remove_nodes(model, OddGo(), batches())
    assert widths(model) == before
    reasons = {name: group.reason for group in report.groups for name in group.layers}
    assert reasons["a"] == "'grouped' is a grouped convolution"
    assert reasons["b"] == "'norm' is a GroupNorm, from which no single node can be taken"
    assert reasons["c"] == "is handed out"
    assert "parameter 'scale' goes along" in reasons["d"]
    assert "shares its weight with 'f'" in reasons["e"]
    assert reasons["last"] == "is handed out"


class Reshaped(nn.Module):
    """Counts on its eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) + torch.ones(8, 1, 1, dtype=x.dtype))
        return y


def test_a_network_that_does_not_run_with_fewer_nodes_is_left_as_it_was() -> None:
    model = made(Reshaped)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WiringError, match="does not run with fewer nodes"):
        remove_nodes(model, OddGo(), batches())
    assert model.a.out_channels == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wired_networks_and_missing_images_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Dense(4, 4)))
    with pytest.raises(WiringError, match=r"'1.0' is a Dense: nodes are taken out of ordinary"):
        remove_nodes(model, OddGo(), batches())
    with pytest.raises(WiringError, match="give it images"):
        remove_nodes(made(Residual), OddGo(), [])


def test_modes_frozen_weights_and_identity_of_modules_survive() -> None:
    model = made(Residual).train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    stem = model.stem
    remove_nodes(model, OddGo(), batches())
    assert model.stem is stem
    assert not stem.weight.requires_grad
    assert model.inside.weight.requires_grad
    assert (model.training, model.norm.training) == (True, False)
    assert stem.out_channels == 3
    model(batches()[0]).sum().backward()
    assert model.inside.weight.grad is not None


@pytest.mark.parametrize("rule", ["apoz", "merge", "dpp", "ssl"])
def test_every_rule_works_on_skips_depthwise_filters_and_a_classifier(rule: str) -> None:
    model = made(Residual)
    report = remove_nodes(model, NODE_RULES.get(rule)({"share": 0.5}), batches())
    assert [group.after for group in report.groups] == [3, 4, 4]
    assert bool(model(batches()[0]).isfinite().all())


def narrow(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(num_classes=5),
        lambda: mobilenet_v2(num_classes=5, width_mult=0.25),
        lambda: nn.Sequential(make_layers(PLAN, True), nn.Flatten(), nn.Linear(32 * 16, 5)),
    ],
    ids=["resnet18", "mobilenet_v2", "vgg"],
)
def test_networks_of_torchvision_lose_half_of_their_nodes(
    build: Callable[[], nn.Module],
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
    before = narrow(model)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    report = remove_nodes(model, OddGo(), [x])
    left = [group for group in report.groups if group.reason]
    assert [group.reason for group in left] == ["is handed out"]
    assert all(group.after == -(-group.before // 2) for group in report.groups[:-1])
    assert narrow(model) < 0.3 * before
    assert model(x).shape == (2, 5)
