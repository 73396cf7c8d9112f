"""A converted network's file: the same network again, in as many bits as its cost says."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import OPS, converted, images, tiny
from torch import Tensor, nn

import wiring
from wiring.config import Component
from wiring.errors import CheckpointError, WiringError
from wiring.export import digest_of, read_file
from wiring.graph.driving import advance
from wiring.models.cost import model_cost
from wiring.models.files import read_header
from wiring.models.layers import wired_layers


@pytest.mark.parametrize("op", OPS)
def test_a_network_comes_back_from_its_file_in_every_stage(op: str, tmp_path: Path) -> None:
    model, x, path = converted(op), images(), tmp_path / "model.safetensors"
    stages = len(wired_layers(model)["6"].edge_op.phases())
    for stage in range(stages):
        advance(model, [x], stage=stage)
        wiring.save_model(model, path)
        found = wiring.load_model(path, tiny(seed=7))
        assert torch.equal(found(x), model(x)), stage
        for name, layer in wired_layers(found).items():
            assert torch.equal(layer.live_mask, wired_layers(model)[name].live_mask)
        bits, tensors = stored_bits(path)
        cost = sum(row.cost.weight_bits + row.cost.index_bits for row in model_cost(model, x[:1]))
        assert 0 <= bits - cost - moment_bits(model) < 8 * tensors, stage


def stored_bits(path: Path) -> tuple[int, int]:
    """Bits of all tensors in a file, and how many there are."""
    tensors = load_file(path)
    return 8 * sum(t.numel() * t.element_size() for t in tensors.values()), len(tensors)


def moment_bits(model: nn.Module) -> int:
    """What norms keep beside scale and shift, which no cost counts."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    return sum(8 * b.numel() * b.element_size() for norm in norms for b in norm.buffers())


def test_a_network_with_fewer_nodes_comes_back(tmp_path: Path) -> None:
    model, x, path = tiny(), images(16), tmp_path / "small.safetensors"
    rule = Component(name="merge", share=0.25)
    wiring.compress(model, [rule, "magnitude"], [x], density=0.5, keep=("0", "6", "8"))
    wiring.save_model(model, path)
    found = wiring.load_model(path, tiny(seed=7))
    assert found.get_submodule("2.bn1").num_features == 12
    assert torch.equal(found(x), model(x))
    found.train()(x).sum().backward()


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "model.safetensors"
    wiring.convert(model, "dense", "dnw", 0.5)
    wiring.save_model(model, path)
    found = wiring.load_model(path, tiny()).train()
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1)
    wiring.attach(found, optimizer)
    found(images()).square().sum().backward()
    optimizer.step()
    wiring.verify(found)
    assert all(layer.spec.rule.name == "dnw" for layer in wired_layers(found).values())


def test_modules_of_two_names_are_stored_once(tmp_path: Path) -> None:
    def build() -> nn.Module:
        shared = nn.Linear(6, 6)
        return nn.Sequential(nn.Linear(6, 6), shared, nn.ReLU(), shared, nn.Linear(6, 6))

    model, path, x = build(), tmp_path / "model.safetensors", torch.ones(2, 6)
    wiring.convert(model, "bwn", "dnw", 0.5)
    wiring.save_model(model, path, source="resnet18")
    found = wiring.load_model(path, build())
    assert found[1] is found[3]
    assert torch.equal(found(x), model(x))
    assert not any(name.startswith("3.") for name in load_file(path))
    assert read_header(path).source == "resnet18"


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    wiring.save_model(converted("bwn"), path)
    wrong = tiny()
    wrong[6] = nn.Sequential(wrong[6])
    with pytest.raises(CheckpointError, match="does not fit this model: '6' is a Sequential"):
        wiring.load_model(path, wrong)
    other = tiny()
    other.get_submodule("2").conv1 = nn.Conv2d(8, 16, 5, stride=2, padding=1)
    with pytest.raises(CheckpointError, match=r"'2\.conv1' is a Conv2d"):
        wiring.load_model(path, other)
    more = nn.Sequential(*tiny(), nn.Linear(5, 5))
    with pytest.raises(CheckpointError, match=r"the file has nothing for '9\.weight'"):
        wiring.load_model(path, more)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        wiring.load_model(path, tiny())
    wiring.save_model(converted("bwn"), path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match their digest"):
        wiring.load_model(path, tiny())
    path.write_bytes(data[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        wiring.load_model(path, tiny())
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="is no converted model"):
        wiring.load_model(path, tiny())


@pytest.mark.parametrize(
    ("op", "piece", "spoil"),
    [
        ("bwn", "signs", lambda t: t[: len(t) // 2]),
        ("vq", "codes", lambda t: t.double()),
        ("lcnn", "places", lambda t: t[:1]),
    ],
)
def test_a_tensor_of_another_kind_is_refused_and_changes_nothing(
    op: str, piece: str, spoil: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    path, model = tmp_path / "model.safetensors", tiny()
    wiring.compress(model, op, [images()])
    wiring.save_model(model, path)
    tensors, metadata = read_file(path)
    tensors[f"6.edges.{piece}"] = spoil(tensors[f"6.edges.{piece}"]).clone()
    header = json.loads(metadata["header"]) | {"digest": digest_of(tensors)}
    save_file(tensors, path, {**metadata, "header": json.dumps(header)})
    plain = tiny(seed=3)
    state = copy.deepcopy(plain.state_dict())
    with pytest.raises(CheckpointError, match="does not fit this model"):
        wiring.load_model(path, plain)
    assert not wired_layers(plain)
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    wiring.save_model(converted("bwn"), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        wiring.save_model(converted("xnor"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_module_with_state_of_its_own_cannot_be_stored(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 3}

    model = converted("bwn")
    model.append(Odd())
    with pytest.raises(WiringError, match=r"'9' \(Odd\) keeps state of its own"):
        wiring.save_model(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize("op", OPS)
def test_a_compiled_network_computes_what_the_network_does(op: str) -> None:
    model, x = converted(op), images()
    compiled = wiring.compile(model, example=x, cache=False)
    torch.testing.assert_close(compiled(x), model(x).detach(), rtol=1e-3, atol=1e-4)
    assert [choice.op for choice in compiled.choices()] == [op] * 4
    assert set(wired_layers(model)) == {choice.bundle for choice in compiled.choices()}
    assert not wired_layers(compiled)
    torch.testing.assert_close(compiled(x[:1]), model(x[:1]).detach(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled_is_said() -> None:
    model = converted("dense")
    with pytest.raises(WiringError, match="give an example"):
        wiring.compile(model)
    with pytest.raises(WiringError, match="has no wired layer"):
        wiring.compile(tiny(), example=images())
    with pytest.raises(WiringError, match="float32 on the CPU"):
        wiring.compile(converted("dense").double(), example=images().double())
    with pytest.raises(WiringError, match="has no kernel 'warp'"):
        wiring.compile(model, example=images(), kernels={"6": "warp"}, cache=False)
    with pytest.raises(WiringError, match="does not train"):
        wiring.compile(model, example=images(), cache=False).train()


def test_a_wrong_kernel_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted("dense")
    kind = type(wired_layers(model)["6"].edge_op)
    monkeypatch.setattr(kind, "candidates", lambda *_: {"wrong": lambda x: x.sum() + x[:, :1]})
    with pytest.raises(WiringError, match="kernel 'wrong' of operator 'dense'"):
        wiring.compile(model, example=images(), cache=False)
