"""Any network's layers become wired ones, with their weights, and ordinary ones again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed
from small_models import FIXED, OPS, WIRED, Block, converted, images, tiny
from torch import Tensor, nn

import wiring
from wiring.config import Component
from wiring.errors import BudgetError, ConfigError, UnknownNameError, WiringError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.rules import EDGE_RULES
from wiring.models.layers import WiredConv2d, WiredLayer, WiredLinear, wired_layers
from wiring.models.survey import survey

every_op = pytest.mark.parametrize("op", OPS)


def test_dense_edges_compute_what_the_layers_did() -> None:
    model, x = tiny(), images()
    expected = model(x)
    report = wiring.convert(model)
    assert tuple(row.name for row in report.converted) == WIRED
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@every_op
def test_every_operator_trains_a_step_and_keeps_its_budget(op: str) -> None:
    model = converted(op).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wiring.attach(model, optimizer, steps=4, data=lambda: [images()])
    model(images()).square().sum().backward()
    optimizer.step()
    for name, layer in wired_layers(model).items():
        moved = [
            not torch.equal(parameter, before[f"{name}.{leaf}"])
            for leaf, parameter in layer.named_parameters()
        ]
        assert any(moved), name
        assert int(layer.wiring.live.sum()) == layer.wiring.rule.budget
    wiring.verify(model)


@every_op
def test_a_reverted_layer_computes_the_same_or_says_that_it_does_not(op: str) -> None:
    model, x = converted(op), images(seed=5)
    expected = model(x)
    report = wiring.revert(model)
    assert not wired_layers(model)
    same = torch.allclose(model(x), expected, rtol=1e-3, atol=1e-4)
    differs = ["FUNCTION DIFFERS" in row.note for row in report.rows]
    assert [row.name for row in report.rows] == list(WIRED)
    assert same != any(differs), op
    assert all(differs) or not any(differs)


def test_an_operator_that_is_not_linear_gives_the_float_weights_back() -> None:
    model, plain = tiny(), tiny()
    wiring.convert(model, "xnor")
    wiring.revert(model)
    for (name, one), (_, other) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_norms_are_folded_into_a_layer_that_is_reverted() -> None:
    torch.manual_seed(0)
    layer = WiredConv2d(3, 4, 3, stride=2, rule="random", density=0.5, before=True, behind=True)
    for norm in (layer.before, layer.behind):
        assert norm is not None
        for tensor in (norm.weight, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2.0)
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(layer).eval()
    expected = model(images())
    wiring.revert(model)
    assert isinstance(model[0], nn.Conv2d)
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_in_front_of_padding_stays_a_module() -> None:
    model = nn.Sequential(WiredConv2d(3, 4, 3, padding=1, before=True)).eval()
    nn.init.normal_(model[0].before.bias)
    expected = model(images())
    wiring.revert(model)
    assert isinstance(model[0][0], nn.BatchNorm2d)
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise"),
        (nn.Conv2d(8, 8, 3, groups=2), "grouped convolution of 2 groups"),
        (nn.Conv2d(8, 8, 3, dilation=2), "dilated by 2×2"),
        (nn.Conv2d(8, 8, 3, stride=(1, 2)), "stride is not square: 1×2"),
        (nn.Conv2d(8, 8, 3, padding=(0, 1)), "padding is not square: 0×1"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "pads with 'reflect'"),
        (nn.ConvTranspose2d(8, 8, 3), "transposed"),
        (nn.Conv1d(8, 8, 3), "Conv1d has no wired form"),
        (nn.Conv3d(8, 8, 3), "Conv3d has no wired form"),
        (nn.Bilinear(8, 8, 8), "bilinear"),
        (nn.LazyLinear(8), "LazyLinear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "Linear"),
        (nn.utils.spectral_norm(nn.Linear(8, 8)), "hooks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_wired_is_left_with_the_reason(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), layer, nn.Linear(3, 3))
    report = wiring.convert(model)
    assert model[2] is layer
    (row,) = [row for row in report.left if row.name == "2"]
    assert reason in row.reason
    assert reason in str(report)


def test_attention_keeps_the_weights_that_it_reads_itself() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8)
    )
    report = wiring.convert(model, keep=())
    reasons = {row.name: row.reason for row in report.left}
    assert set(reasons) == {
        f"1.{n}" for n in ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    }
    assert "without calling it" in reasons["1.self_attn.out_proj"]
    model.eval()(torch.randn(2, 5, 8))


def test_layers_are_kept_by_place_name_pattern_and_type() -> None:
    with pytest.raises(ConfigError, match="no layer matches Flatten"):
        wiring.convert(tiny(), keep=(nn.Flatten,))
    with pytest.raises(ConfigError, match=r"no layer matches '2\.conv3'; did you mean 2\.conv"):
        wiring.convert(tiny(), keep=("2.conv3",))
    assert [r.name for r in wiring.convert(tiny(), keep=("2.conv?",)).left] == [
        "2.conv1",
        "2.conv2",
    ]
    assert [r.name for r in wiring.convert(tiny(), keep=(Block,)).left] == list(WIRED[:3])
    assert [r.name for r in wiring.convert(tiny(), keep=("2", nn.Linear)).converted] == ["0"]
    assert len(wiring.convert(tiny(), keep=()).converted) == 6


def test_nothing_to_wire_is_an_error_that_quotes_the_reasons() -> None:
    with pytest.raises(WiringError, match="no layer can be wired: '0': kept"):
        wiring.convert(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(WiringError, match="no layer can be wired: the model has none"):
        wiring.convert(nn.Sequential(nn.ReLU()))
    with pytest.raises(WiringError, match=r"put it into an nn\.Sequential"):
        wiring.convert(nn.Linear(3, 3), keep=())


@pytest.mark.parametrize("op", FIXED)
def test_an_operator_that_takes_over_no_weights_changes_nothing(op: str) -> None:
    model = tiny()
    with pytest.raises(
        WiringError, match=f"operator {op} cannot: .* takes over no trained weights"
    ):
        wiring.convert(model, op)
    with pytest.raises(ConfigError, match=f"operator {op} is fixed and takes over no trained"):
        wiring.compress(model, ["magnitude", op], density=0.5)
    assert not wired_layers(model)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"op": "xnro"}, UnknownNameError, "did you mean xnor"),
        ({"rule": "dnw", "density": 0.0}, BudgetError, "density must be above 0"),
        ({"density": 0.5}, BudgetError, "rule complete keeps every edge"),
        ({"op": Component(name="xnor", depth=3)}, ConfigError, "unknown key 'depth'"),
        ({"op": "hashed", "rule": "rigl", "density": 0.5}, WiringError, "rule RiggedLottery"),
        ({"rule": "dnw", "density": 0.5, "scheme": "pool"}, ConfigError, "uniform or erk"),
        ({"data": [{"x": 1}]}, ConfigError, "batches of inputs"),
        ({"data": []}, ConfigError, "data has no batch"),
        ({"rule": "dnw", "density": float("nan")}, BudgetError, "density must be above 0"),
        ({"rule": "dnw", "density": None}, BudgetError, "density must be above 0"),
        ({"rule": Component(name="dnw", depth=3)}, ConfigError, "rule dnw: unknown key 'depth'"),
        ({"scheme": "pool"}, ConfigError, "uniform or erk"),
        ({"keep": (3,)}, ConfigError, "keep takes names, patterns and module types, got 3"),
        ({"keep": None}, ConfigError, "keep takes names, patterns and module types, got None"),
        ({"data": torch.ones(2, 3, 8, 8)}, ConfigError, "put it into a list"),
        ({"data": 3}, ConfigError, "batches of inputs, got int"),
        ({"data": [torch.full((2, 3, 8, 8), torch.nan)]}, ConfigError, "not finite"),
        ({"data": [images(), torch.ones(2, 4, 8, 8)]}, ConfigError, "data: the network does not"),
        ({"example": torch.ones(1, 4, 8, 8)}, ConfigError, "example: the network does not run"),
        ({"example": [1]}, ConfigError, "example must be a batch of inputs, got list"),
        ({"op": Component(name="low-rank", fit="data")}, ConfigError, "looks at what layers read"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:40],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(
    settings: dict[str, Any], error: type[WiringError], message: str
) -> None:
    model = tiny()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(error, match=message):
        wiring.convert(model, **settings)
    assert [name for name, _ in model.named_modules()] == names


class Normed(nn.Sequential):
    """Three convolutions, the first with a norm behind it; `traceable` by torch.fx or not."""

    def __init__(self, *, traceable: bool = True, again: bool = False) -> None:
        convolutions = [nn.Conv2d(3, 3, 1) for _ in range(3)]
        super().__init__(convolutions[0], nn.BatchNorm2d(3), *convolutions[1:])
        self.traceable, self.again = traceable, again

    def forward(self, x: Tensor) -> Tensor:
        if not self.traceable and bool((x > 0).all()):
            return x
        first = self[0](x)
        normed = self[1](first)
        return self[3](self[2](normed + first if self.again else normed))


@pytest.mark.parametrize("traceable", [True, False])
def test_a_norm_is_put_behind_adders_only_where_none_follows(traceable: bool) -> None:
    model = Normed(traceable=traceable)
    report = wiring.convert(model, "adder", keep=(), example=images())
    behind = [layer.behind is None for layer in wired_layers(model).values()]
    assert behind == [True, False, False]
    assert "its sums go to the norm '1'" in str(report)
    assert "not measured" in str(report)


def test_a_norm_that_is_not_alone_in_reading_adders_does_not_count() -> None:
    model = Normed(again=True)
    wiring.convert(model, "adder", keep=())
    assert all(layer.behind is not None for layer in wired_layers(model).values())


def test_moments_of_norms_are_measured_on_data() -> None:
    model, x = tiny(), images(64)
    wiring.convert(model, "adder", data=[x[:32], x[32:]])
    layer = wired_layers(model)["2.conv2"]
    seen: list[Tensor] = []
    layer.behind.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    follows: list[Tensor] = []
    model.get_submodule("2.bn1").register_forward_pre_hook(lambda _, i: follows.append(i[0]))
    with torch.no_grad():
        model(x)
    mean = follows[0].mean(dim=(0, 2, 3))
    torch.testing.assert_close(model.get_submodule("2.bn1").running_mean, mean, rtol=0.05, atol=0.5)
    assert float(layer.behind.running_mean.max()) < -1
    assert not any(module.training for module in model.modules())


def test_signs_get_a_norm_in_front_with_a_word_of_warning() -> None:
    report = wiring.convert(model := tiny(), "xnor")
    assert all(layer.before is not None for layer in wired_layers(model).values())
    assert "batch norms were put in front of xnor edges" in str(report)


def test_a_module_of_two_names_stays_one_module() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), shared, nn.ReLU(), shared, nn.Linear(6, 6))
    expected = model(torch.ones(2, 6))
    report = wiring.convert(model)
    assert model[1] is model[3]
    assert "is also 3" in str(report)
    torch.testing.assert_close(model(torch.ones(2, 6)), expected)


def test_an_operator_that_is_fitted_to_inputs_leaves_layers_that_run_twice() -> None:
    name = next(name for name in OPS if EDGE_OPS.get(name).needs_data)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(
        *[nn.Linear(6, 6) for _ in range(2)], shared, nn.ReLU(), shared, nn.Linear(6, 6)
    )
    report = wiring.convert(model, name, data=[torch.randn(8, 6)])
    assert model[2] is shared
    assert "runs more than once" in str(report)


def test_a_weight_that_two_layers_share_stays() -> None:
    model = nn.Sequential(nn.Embedding(6, 6), *[nn.Linear(6, 6) for _ in range(4)])
    model[2].weight = model[0].weight
    assert "it shares its weight with '0.weight'" in str(wiring.convert(model))


def test_frozen_layers_stay_frozen_and_modes_and_types_stay() -> None:
    model = tiny().double()
    model.get_submodule("2.conv1").requires_grad_(False)
    model.train()
    model.get_submodule("2.bn1").eval()
    wiring.convert(model, "bwn", data=[images().double()])
    layers = wired_layers(model)
    assert not any(p.requires_grad for p in layers["2.conv1"].parameters())
    assert all(p.requires_grad for p in layers["2.conv2"].parameters())
    assert model.training
    assert layers["2.conv2"].training
    assert not model.get_submodule("2.bn1").training
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_edges_are_shared_out_over_layers() -> None:
    uniform, erk = tiny(), tiny()
    wiring.convert(uniform, "dense", "dnw", 0.25)
    wiring.convert(erk, "dense", "dnw", 0.25, scheme="erk")
    counts = [
        {n: int(layer.wiring.live.sum()) for n, layer in wired_layers(m).items()}
        for m in (uniform, erk)
    ]
    sizes = {name: layer.wiring.live.numel() for name, layer in wired_layers(erk).items()}
    assert sum(counts[0].values()) == sum(counts[1].values()) == round(0.25 * sum(sizes.values()))
    assert all(abs(counts[0][n] / sizes[n] - 0.25) < 0.01 for n in sizes)
    assert counts[1]["2.short"] / sizes["2.short"] > 2 * counts[1]["6"] / sizes["6"]


def test_a_rule_keeps_the_strongest_of_the_trained_weights() -> None:
    model = tiny()
    weight = model.get_submodule("2.conv2").weight.detach().abs()
    wiring.convert(model, "dense", "dnw", 0.25)
    live = wired_layers(model)["2.conv2"].live_mask
    assert float(weight[live].min()) >= float(weight[~live].max())


def test_the_same_seed_gives_the_same_wiring() -> None:
    masks = []
    for seed in (0, 0, 1):
        wiring.convert(model := tiny(), "dense", "random", 0.5, seed=seed)
        masks.append(wired_layers(model)["6"].wiring.live)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_costs_before_and_after_are_those_of_the_networks() -> None:
    report = wiring.convert(tiny(), "bwn", "dnw", 0.5, example=images())
    assert report.before is not None
    assert report.after is not None
    weights = 32 * sum(p.numel() for p in tiny().parameters())
    assert report.before.weight_bits == weights
    wired = 16 * 8 * 9 + 16 * 16 * 9 + 16 * 8 + 24 * 64
    rows = 16 + 16 + 16 + 24
    assert report.after.weight_bits == weights - 32 * wired + wired // 2 + 32 * rows
    assert report.after.index_bits == wired
    assert report.to_dict()["after"]["weight_bits"] == report.after.weight_bits


@pytest.mark.parametrize("rule", [n for n in EDGE_RULES.names() if n != "complete"])
def test_every_rule_wires_and_trains(rule: str) -> None:
    model = tiny().train()
    wiring.convert(model, "dense", rule, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    wiring.attach(model, optimizer, steps=12)
    for _ in range(12):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
    wiring.verify(model)


def test_moments_that_cannot_be_measured_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(WiringError, match="moments of norms cannot be measured"):
        wiring.convert(model, "adder", data=[torch.randn(1, 4)])
    assert not wired_layers(model)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny()
    with torch.no_grad():
        model.get_submodule("2.conv2").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(WiringError, match=r"layer '2\.conv2' has weights that are not finite"):
        wiring.convert(model, "low-rank")
    assert not wired_layers(model)


@pytest.mark.parametrize("op", ["acdc", "circulant", "fft"])
def test_transforms_refuse_half_the_precision_in_a_sentence(op: str) -> None:
    layer = WiredLinear(4, 4, op=op).bfloat16()
    with pytest.raises(WiringError, match="take float32 or float64"):
        layer(torch.zeros(2, 4, dtype=torch.bfloat16))


def test_a_frozen_layer_is_not_projected() -> None:
    model = tiny().requires_grad_(False)
    wiring.convert(model, "bwn")
    head = list(model[8].requires_grad_(True).parameters())
    before = model[6].edge_op.weight.clone()
    optimizer = torch.optim.SGD(head, lr=0.1)
    wiring.attach(model, optimizer)
    model(images()).square().mean().backward()
    optimizer.step()
    assert torch.equal(model[6].edge_op.weight, before)


def test_a_survey_changes_nothing() -> None:
    model = tiny().train()
    model.get_submodule("2.bn1").eval()
    state = copy.deepcopy(model.state_dict())
    survey(model, batch=images())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.get_submodule("2.bn1").training
    assert not any(isinstance(part, WiredLayer) for part in model.modules())
