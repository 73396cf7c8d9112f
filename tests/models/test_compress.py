"""Methods follow one another on a trained network, and keep what each of them promised."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import OPS, WIRED, images, quick_fits, tiny
from torch import nn

import wiring
from wiring.config import Component
from wiring.errors import ConfigError, UnknownNameError, WiringError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.staged import StagedOp
from wiring.models.layers import wired_layers
from wiring.models.methods import find

STAGED = [name for name in OPS if issubclass(EDGE_OPS.get(name), StagedOp)]


def budgets(model: nn.Module) -> dict[str, int]:
    return {name: int(layer.wiring.live.sum()) for name, layer in wired_layers(model).items()}


@pytest.mark.parametrize("op", OPS)
def test_every_operator_codes_a_pruned_network_and_keeps_it_sparse(op: str) -> None:
    model = tiny()
    with quick_fits():
        report = wiring.compress(model, ["magnitude", op], [images()], density=0.3)
    layers = wired_layers(model)
    assert tuple(layers) == WIRED
    for layer in layers.values():
        assert layer.spec.op.name == op
        assert abs(int(layer.wiring.live.sum()) / layer.wiring.live.numel() - 0.3) < 0.01
        if isinstance(layer.edge_op, StagedOp):
            assert layer.edge_op.stage == len(layer.edge_op.phases()) - 1
    wiring.verify(model)
    assert "every promise so far holds" in str(report)
    assert model(images()).isfinite().all()


def test_pruning_at_once_keeps_the_weights_of_largest_magnitude() -> None:
    model, plain = tiny(), tiny()
    wiring.compress(model, "magnitude", density=0.2)
    for name, layer in wired_layers(model).items():
        weight = plain.get_submodule(name).weight.detach().abs()
        live = layer.live_mask.view(weight.shape)
        assert float(weight[live].min()) >= float(weight[~live].max())
        assert layer.wiring.rule.fixed


def test_pruning_by_quality_finds_its_own_number_of_edges() -> None:
    model, plain = tiny(), tiny()
    wiring.compress(model, Component(name="magnitude", quality=1.0))
    for name, layer in wired_layers(model).items():
        weight = plain.get_submodule(name).weight.detach()
        strong = weight.abs() > weight.std(correction=0)
        assert torch.equal(layer.live_mask.view(weight.shape), strong), name
    wiring.verify(model)


def test_wired_layers_of_the_complete_graph_can_be_pruned() -> None:
    model = tiny()
    wiring.convert(model)
    wiring.compress(model, ["one-shot", "vq"], density=0.3)
    assert all(layer.spec.op.name == "vq" for layer in wired_layers(model).values())
    assert budgets(model)["6"] == round(0.3 * 64 * 24)


def test_a_rule_that_learns_goes_on_under_a_binary_operator() -> None:
    model = tiny().train()
    wiring.compress(model, ["dnw", "xnor"], [images()], density=0.3)
    before = {name: layer.live_mask.clone() for name, layer in wired_layers(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    wiring.attach(model, optimizer)
    for seed in range(4):
        optimizer.zero_grad()
        model(images(8, seed)).square().sum().backward()
        optimizer.step()
    after = wired_layers(model)
    assert any(not torch.equal(before[name], after[name].live_mask) for name in before)
    assert all(int(mask.sum()) == int(after[name].live_mask.sum()) for name, mask in before.items())
    wiring.verify(model)


@pytest.mark.parametrize("op", ["vq", "deep-compression"])
def test_fine_tuning_stays_on_the_codebook_and_moves_no_edge(op: str) -> None:
    model = tiny().train()
    wiring.compress(model, ["dnw", op], [images()], density=0.3)
    before = {name: layer.live_mask.clone() for name, layer in wired_layers(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wiring.attach(model, optimizer, steps=4, data=lambda: [images()])
    for seed in range(4):
        optimizer.zero_grad()
        model(images(8, seed)).square().sum().backward()
        optimizer.step()
    for name, layer in wired_layers(model).items():
        assert torch.equal(before[name], layer.live_mask)
    wiring.verify(model)


def test_low_rank_factors_may_be_binary() -> None:
    bits = []
    for method in ("low-rank", Component(name="low-rank", factors="binary")):
        wiring.compress(model := tiny(), method)
        layers = wired_layers(model).values()
        bits.append(sum(one.edge_op.cost(one.live_mask, 1).weight_bits for one in layers))
    assert 5 * bits[1] < bits[0]


def test_nodes_go_before_edges_before_codes() -> None:
    model, x = tiny(), images(16)
    plain = sum(parameter.numel() for parameter in model.parameters())
    rule = Component(name="merge", share=0.25)
    report = wiring.compress(model, [rule, "magnitude", "vq"], [x], density=0.5, example=x)
    assert [step[:2] for step in report.steps] == ["1.", "2.", "3."]
    assert sum(layer.wiring.live.numel() for layer in wired_layers(model).values()) < plain
    assert model(x).shape == (16, 5)
    assert report.before is not None
    assert report.after is not None
    assert report.after.weight_bits < report.before.weight_bits / 4


def test_the_callers_training_runs_between_methods() -> None:
    seen: list[dict[str, str]] = []

    def fine_tune(model: nn.Module) -> None:
        seen.append({n: layer.spec.op.name for n, layer in wired_layers(model).items()})

    wiring.compress(tiny(), ["magnitude", "bwn"], density=0.5, fine_tune=fine_tune)
    assert seen == [dict.fromkeys(WIRED, "dense")]


def test_training_that_breaks_a_promise_is_found_out() -> None:
    def revive(model: nn.Module) -> None:
        wired_layers(model)["6"].wiring.live.fill_(True)

    with pytest.raises(WiringError, match="after fine-tuning: layer '6' has 1536 live edges"):
        wiring.compress(tiny(), ["magnitude", "bwn"], density=0.5, fine_tune=revive)


def test_a_weight_off_its_codebook_is_found_out() -> None:
    model = tiny()
    wiring.compress(model, "vq")
    with torch.no_grad():
        wired_layers(model)["6"].edge_op.weight[3, 2] += 1
    with pytest.raises(WiringError, match=r"layer '6': .* 1 of 1536 live weights are off it"):
        wiring.verify(model)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["vq", "magnitude"], "magnitude cannot come after operator vq: .*prune first"),
        (["vq", "merge"], "merge cannot come after operator vq: nodes are taken out of ordinary"),
        (["magnitude", "merge"], "merge cannot come after edge rule magnitude"),
        (["xnor", "vq"], "vq cannot come after operator xnor: one operator computes a layer"),
        (["dnw", "magnitude"], "magnitude cannot come after edge rule dnw: one rule"),
        (["rigl"], "rigl chooses its edges while it trains: say wiring.convert"),
        (["surgery"], "surgery chooses its edges while it trains"),
        (["ssl"], "'ssl' names the node rule and the edge rule; say node:ssl or rule:ssl"),
        ([], "at least one method"),
        (["merge"], "merge looks at what nodes compute: give data"),
        (["bwnh"], "bwnh looks at what layers read: give data"),
        ([Component(name="vq", depth=3)], "unknown key 'depth'"),
        (["magnitude", Component(name="low-rank", fit="data")], "looks at what layers read"),
        (["magnitude", Component(name="separable", fit="data")], "looks at what layers read"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_changes(
    methods: list[Any], message: str
) -> None:
    model = tiny()
    with pytest.raises(ConfigError, match=message):
        wiring.compress(model, methods, density=0.5)
    assert not wired_layers(model)


def test_a_step_that_fails_undoes_those_before_it() -> None:
    model = tiny()
    before = [(name, id(part)) for name, part in model.named_modules()]
    y, state = model(images()), copy.deepcopy(model.state_dict())

    def spoil(half: nn.Module) -> None:
        with torch.no_grad():
            for parameter in half.parameters():
                parameter.fill_(torch.nan)

    with pytest.raises(WiringError, match="not finite"):
        wiring.compress(
            model, ["apoz", "magnitude", "vq"], [images()], density=0.5, fine_tune=spoil
        )
    assert [(name, id(part)) for name, part in model.named_modules()] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(images()), y)


@pytest.mark.parametrize("density", [None, 0.0, 1.0])
def test_pruning_needs_a_density(density: float | None) -> None:
    with pytest.raises(ConfigError, match="magnitude needs a density above 0 and below 1"):
        wiring.compress(tiny(), "magnitude", density=density)


def test_a_coded_network_cannot_be_coded_again() -> None:
    model = tiny()
    wiring.convert(model, "bwn")
    with pytest.raises(ConfigError, match="vq cannot come after operator bwn"):
        wiring.compress(model, "vq")


def test_an_unknown_method_is_answered_with_near_names() -> None:
    with pytest.raises(UnknownNameError, match="did you mean magnitude"):
        find("magnitud")
    assert find("rule:ssl").kind == "rule"
    assert find("node:ssl").kind == "node"
    with pytest.raises(UnknownNameError):
        find("op:magnitude")
