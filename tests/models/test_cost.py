"""What any PyTorch model costs: published figures, and small modules counted by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wiring.cost import Cost, total
from wiring.errors import WiringError
from wiring.graph.costs import CostRow
from wiring.models.cost import model_cost
from wiring.models.layers import WiredConv2d, WiredLinear

PRODUCTS = ("conv", "linear", "attention")


def moves(values: int) -> Cost:
    return Cost(activation_bits=32 * values)


def single(model: nn.Module, example: Tensor) -> CostRow:
    (row,) = model_cost(model, example)
    return row


@pytest.mark.parametrize(
    ("name", "products", "parameters"),
    [
        ("resnet18", 1_814_073_344, 11_689_512),
        ("alexnet", 714_188_480, 61_100_840),
        ("vgg11", 7_609_090_048, 132_863_336),
        ("mobilenet_v2", 300_774_272, 3_504_872),
    ],
)
def test_convolutional_networks_cost_what_is_published(
    name: str, products: int, parameters: int
) -> None:
    with torch.device("meta"):
        model, example = torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224)
    rows = model_cost(model, example)
    assert sum(row.cost.multiplications for row in rows if row.kind in PRODUCTS) == products
    assert total([row.cost for row in rows]).weight_bits == 32 * parameters
    assert all(row.kind != "unknown" for row in rows)


def test_a_transformer_costs_what_is_published_and_tells_of_its_loose_parameters() -> None:
    with torch.device("meta"):
        model, example = torchvision.models.vit_b_16(), torch.zeros(1, 3, 224, 224)
    with pytest.warns(UserWarning, match="known, only what they weigh: VisionTransformer, encoder"):
        rows = model_cost(model, example)
    products = sum(row.cost.multiplications for row in rows if row.kind in PRODUCTS)
    # torchvision says 17.56 billion; the scaling of the queries is not among them.
    assert products - 12 * 197 * 768 == 17_563_828_224
    assert total([row.cost for row in rows]).weight_bits == 32 * 86_567_656
    softmax = [row.cost for row in rows if row.kind == "softmax"]
    scores = 12 * 197 * 197
    assert softmax == [Cost(scores, 2 * scores, lookups=scores) + moves(2 * scores)] * 12


def test_convolutions_count_groups_dilation_and_transposition() -> None:
    x = torch.zeros(1, 4, 9, 9)
    grouped = single(nn.Conv2d(4, 6, 3, groups=2, dilation=2), x)
    weights, written = 6 * 2 * 9, 6 * 25
    products = weights * 25
    bits = 32 * (weights + 6)
    expected = Cost(products, products + written, weight_bits=bits) + moves(4 * 81 + written)
    assert grouped == CostRow("Conv2d", "conv", expected)
    transposed = single(nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), x)
    products = 4 * 6 * 9 * 81
    bits = 32 * 4 * 6 * 9
    expected = Cost(products, products, weight_bits=bits) + moves(4 * 81 + 6 * 19 * 19)
    assert transposed == CostRow("ConvTranspose2d", "conv", expected)
    line = single(nn.Conv1d(2, 3, 5, padding=2), torch.zeros(1, 2, 7))
    assert line.cost.multiplications == 2 * 3 * 5 * 7


def test_linear_layers_take_any_leading_dimensions() -> None:
    row = single(nn.Linear(5, 3), torch.zeros(1, 2, 4, 5))
    assert row.cost == Cost(120, 120 + 24, weight_bits=32 * 18) + moves(40 + 24)


def test_norms_and_pools_count_what_their_description_says() -> None:
    x = torch.zeros(1, 6, 4, 4)
    assert single(nn.BatchNorm2d(6), x).cost == Cost(96, 96, weight_bits=32 * 12) + moves(192)
    bare = single(nn.BatchNorm2d(6, affine=False), x)
    assert bare.cost == Cost(96, 96, weight_bits=32 * 12) + moves(192)
    grouped = single(nn.GroupNorm(2, 6), x)
    assert grouped.cost == Cost(192, 288, weight_bits=32 * 12) + moves(192)
    assert single(nn.AvgPool2d(2), x).cost == Cost(additions=24 * 3) + moves(96 + 24)
    assert single(nn.MaxPool2d(2), x).cost == moves(96 + 24)
    # Windows 0-1, 1-2, 2-3 in both directions.
    assert single(nn.AdaptiveAvgPool2d(3), x).cost == Cost(additions=6 * 9 * 3) + moves(96 + 54)


def test_attention_between_two_sequences_is_counted_part_by_part() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            seen: Tensor = self.attend(
                x, value=x.new_zeros(1, 7, 5), key=x.new_zeros(1, 7, 6), need_weights=False
            )[0]
            return seen

    parts = {row.name: row.cost for row in model_cost(Cross(), torch.zeros(1, 3, 8))}
    products = 3 * 8 * 8 + 7 * 8 * 6 + 7 * 8 * 5 + 3 * 8 * 8
    assert parts["attend.projections"].multiplications == products
    assert parts["attend.projections"].additions == products + 3 * 8 + 2 * 7 * 8 + 3 * 8
    assert parts["attend.scores"].additions == 2 * 3 * 7 * 8
    assert parts["attend.softmax"].lookups == 2 * 3 * 7
    bits = 32 * sum(parameter.numel() for parameter in Cross().parameters())
    assert total(list(parts.values())).weight_bits == bits


@pytest.mark.parametrize("kind", [nn.Linear, WiredLinear])
def test_a_module_that_runs_twice_costs_twice_and_weighs_once(kind: type[nn.Module]) -> None:
    layer = kind(4, 4, bias=False)
    rows = model_cost(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 4))[:2]
    assert [row.cost.multiplications for row in rows] == [16, 16]
    assert [row.cost.weight_bits for row in rows] == [32 * 16, 0]


def test_wired_layers_count_live_edges_and_what_says_which() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        WiredConv2d(2, 4, 3, padding=1, rule="dnw", density=0.25), WiredLinear(5, 3, bias=False)
    )
    rows = {row.name: row for row in model_cost(model, torch.zeros(1, 2, 5, 5))}
    live = model[0].live_mask  # type: ignore[union-attr]
    assert int(live.sum()) == 18
    read, written = (int(live.any(dim).sum()) for dim in ((0, 2, 3), (1, 2, 3)))  # type: ignore[arg-type]
    edges = Cost(18 * 25, 18 * 25, weight_bits=32 * 18) + moves(25 * (read + written))
    assert rows["0.ops.edges"] == CostRow("0.ops.edges", "edges", edges)
    assert rows["0.edges.index"].cost == Cost(index_bits=72)
    assert rows["0.nodes.destinations.bias"].cost.additions == 100
    # Twenty vectors of five values, each a pixel.
    assert rows["1.ops.edges"].cost.multiplications == 15 * 20
    assert "unknown" not in {row.kind for row in rows.values()}


class Odd(nn.Module):
    """A scale of its own, and a product that no module computes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.body = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) * self.scale
        return y @ y.transpose(-1, -2)


def test_what_is_not_known_stands_in_the_table_and_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="only what they weigh: Odd"):
        rows = model_cost(Odd(), torch.zeros(1, 2, 3))
    by_kind = {row.kind: row for row in rows}
    assert by_kind["unknown"].cost == Cost(weight_bits=96)
    assert by_kind["unknown"].note == "Odd: what scale is used for is not known"
    assert by_kind["function"] == CostRow("bmm", "function", Cost(12, 12))


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_cost(model, torch.randn(1, 3, 6, 6))
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_batch_of_several_is_refused() -> None:
    with pytest.raises(WiringError, match=r"cost is that of one example: .* got \[2, 4\]"):
        model_cost(nn.Linear(4, 1), torch.zeros(2, 4))
