"""Wired layers are ordinary modules, on their own and inside torchvision's networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from small_models import OPS, converted, images, tiny
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import wiring
from wiring.errors import WiringError
from wiring.graph.edges import EDGE_OPS
from wiring.models.layers import WiredConv2d, WiredLinear, wired_layers

every_op = pytest.mark.parametrize("op", OPS)


def test_a_linear_layer_takes_any_leading_dimensions() -> None:
    layer = WiredLinear(6, 3, op="dense").eval()
    weight = layer.edge_op.weight[:, :, 0, 0]
    for shape in ((6,), (2, 6), (2, 5, 6), (0, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)
    with pytest.raises(WiringError, match=r"takes \[..., 6\]"):
        layer(torch.randn(2, 5))


def test_a_convolution_takes_one_image_without_a_batch() -> None:
    layer = WiredConv2d(3, 4, 3, op="bwn").eval()
    assert torch.equal(layer(images()[0]), layer(images()[:1])[0])
    with pytest.raises(WiringError, match=r"takes \[N, 3, H, W\]"):
        layer(torch.randn(2, 5, 8, 8))


@every_op
def test_its_state_and_its_copies_are_those_of_any_module(op: str) -> None:
    model, x = converted(op), images()
    expected = model(x).detach()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("op", EDGE_OPS.names())
def test_a_wired_layer_of_every_operator_is_exported(op: str) -> None:
    torch.manual_seed(0)
    layer = WiredConv2d(3, 4, 3, padding=1, op=op, rule="random", density=0.5).eval()
    exported = torch.export.export(layer, (images(),)).module()
    torch.testing.assert_close(exported(images()), layer(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["dense", "xnor", "hashed"])
def test_it_compiles_without_graph_breaks(op: str) -> None:
    model, x = (
        nn.Sequential(WiredLinear(8, 4, op=op, rule="random", density=0.5)).eval(),
        torch.randn(2, 8),
    )
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.fixture
def group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_it_trains_under_distributed_data_parallel(group: None) -> None:
    model = tiny().train()
    wiring.convert(model, "dense", "dnw", 0.5)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    wiring.attach(parallel, optimizer)
    before = wired_layers(model)["6"].edge_op.weight.detach().clone()
    parallel(images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(wired_layers(model)["6"].edge_op.weight, before)
    wiring.verify(model)


def torchvision_model(name: str, **settings: Any) -> nn.Module:
    from torchvision.models import get_model

    torch.manual_seed(0)
    return get_model(name, num_classes=10, **settings).eval()


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=10).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


@pytest.mark.parametrize(
    ("name", "side", "op", "wired", "left", "keep"),
    [
        ("alexnet", 63, "dense", 5, 3, ("first", "last", "classifier.1")),
        ("vgg11", 32, "dense", 8, 3, ("first", "last", "classifier.0")),
        ("resnet18", 32, "winograd", 19, 2, ("first", "last")),
        ("resnet50", 32, "dense", 52, 2, ("first", "last")),
        ("mobilenet_v2", 32, "dense", 34, 19, ("first", "last")),
        ("mobilenet_v3_small", 32, "dense", 41, 13, ("first", "last")),
        ("efficientnet_b0", 32, "dense", 64, 18, ("first", "last")),
    ],
)
def test_torchvision_models_compute_the_same_with_exact_operators(
    name: str, side: int, op: str, wired: int, left: int, keep: tuple[str, ...]
) -> None:
    model, x = torchvision_model(name), images(1, side=side)
    with torch.no_grad():
        expected = model(x)
        report = wiring.convert(model, op, keep=keep)
        assert (len(report.converted), len(report.left)) == (wired, left)
        difference = (model(x) - expected).abs().max()
    assert float(difference) <= 1e-3 * max(1e-6, float(expected.abs().max()))


def test_a_vision_transformer_keeps_its_attention_and_wires_the_rest() -> None:
    model, x = vision_transformer(), images(2, side=32)
    expected = model(x)
    report = wiring.convert(model)
    assert len(report.converted) == 4
    assert all(".mlp." in row.name for row in report.converted)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    bits = vision_transformer()
    wiring.convert(bits, "bwn", "dnw", 0.5)
    assert bits(x).isfinite().all()
