"""The command that wires any network: what it prints and writes, and a sentence for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import wiring
from search.cli import main
from search.models import open_plain

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3),
    )

def number():
    return 3
"""


class Runner:
    """Runs a command; (exit code, stdout, stderr)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, command: str = "convert") -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["wiring", command, *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = self.capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err


@pytest.fixture
def convert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Runner:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    return Runner(monkeypatch, capsys)


SMALL = ("--model", "model.py:build", "--input", "1x8x8")


def test_a_network_of_a_python_file_is_wired_and_written(convert: Runner) -> None:
    code, out, _ = convert(
        *SMALL, "--op", "bwn", "--rule", "dnw", "--density", "0.5",
        "--set", "op.weight_gradient=paper", "--output", "wired.safetensors",
    )  # fmt: skip
    assert code == 0
    assert "2 of 4 layers converted" in out
    assert "left as it is" in out
    assert "weight bits" in out
    plain = open_plain("model.py:build")[0]
    model = wiring.load_model("wired.safetensors", plain)
    layer = model[2]
    assert (layer.spec.op.name, layer.edge_op.options.weight_gradient) == ("bwn", "paper")
    assert int(layer.wiring.live.sum()) == 144


def test_the_report_is_plain_data_on_demand(convert: Runner) -> None:
    code, out, _ = convert(*SMALL, "--json", "--keep", "2", "--output", "wired.safetensors")
    report = json.loads(out)
    assert code == 0
    assert [row["name"] for row in report["rows"] if row["became"] is None] == ["2"]
    assert report["before"]["weight_bits"] == 32 * sum(
        p.numel() for p in open_plain("model.py:build")[0].parameters()
    )
    assert report["bytes"] == Path("wired.safetensors").stat().st_size


def test_methods_follow_one_another(convert: Runner) -> None:
    code, out, _ = convert(
        *SMALL, "--compress", "magnitude", "--compress", "vq", "--density", "0.5",
        "--set", "vq.bits=2", "--data", "digits", "--images", "8", "--json",
    )  # fmt: skip
    report = json.loads(out)
    assert code == 0
    assert len(report["steps"]) == 2
    assert report["converted"] == 2


def test_a_written_file_is_a_model_again(convert: Runner) -> None:
    convert(*SMALL, "--output", "wired.safetensors")
    code, _, err = convert("--model", "wired.safetensors", "--input", "1x8x8")
    assert code == 1
    assert "was made of model.py:build: name that model, with --weights wired.safetensors" in err
    weighed = ("model.py:build", "--input", "1x8x8", "--weights", "wired.safetensors")
    code, out, _ = convert(*weighed, "--json", command="cost")
    assert code == 0
    assert "compared" in json.loads(out)
    code, _, err = convert("model.py:build", "--input", "2x8x8", command="cost")
    assert code == 1
    assert "the network does not run on [1, 2, 8, 8]" in err
    code, out, _ = convert(*SMALL, "--weights", "wired.safetensors", "--compress", "bwn", "--json")
    assert code == 0
    assert {row["became"] for row in json.loads(out)["rows"]} == {None, "bwn, every edge alive"}


def test_a_state_dict_gives_the_weights(convert: Runner) -> None:
    state = {name: t + 1 for name, t in open_plain("model.py:build")[0].state_dict().items()}
    save_file(state, "weights.safetensors")
    code, _, _ = convert(
        *SMALL, "--weights", "weights.safetensors", "--output", "wired.safetensors"
    )
    assert code == 0
    model = wiring.load_model("wired.safetensors", open_plain("model.py:build")[0])
    assert torch.equal(model[2].edge_op.weight, state["2.weight"])


def test_a_model_of_torchvisions_is_wired_by_name(convert: Runner) -> None:
    arguments = ("--input", "3x32x32", "--op", "bwn", "--json", "--output", "m.safetensors")
    code, out, _ = convert("--model", "squeezenet1_1", *arguments)
    assert code == 0
    assert json.loads(out)["converted"] == 24
    _, source = open_plain("m.safetensors")
    assert source == "squeezenet1_1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet81"), "'resnet81' is no model of torchvision's.*did you mean"),
        (("--model", "model.py"), "say which function of model.py makes the network"),
        (("--model", "model.py:number"), "returns a int, not a module"),
        (("--model", "model.py:nothing"), "has no function 'nothing'"),
        (("--model", "missing.py:build"), "there is no such file"),
        ((*SMALL, "--op", "xnro"), "did you mean xnor"),
        ((*SMALL, "--keep", "middle"), "keep: no layer matches 'middle'"),
        ((*SMALL, "--set", "vq.bits=2"), "there is no 'vq' here; it takes op.x, rule.x"),
        ((*SMALL, "--set", "op.depth=2"), "unknown key 'depth'"),
        ((*SMALL, "--compress", "vq", "--op", "dense"), "--compress takes the place of --op"),
        ((*SMALL, "--compress", "bwnh"), "bwnh looks at what layers read: give data"),
        ((*SMALL, "--data", "digits", "--compress", "vq", "--input", "3x8x8"), "images of 1x8x8"),
        (("--model", "model.py:build", "--input", "8,8"), "--input is like 3x224x224"),
    ],
    ids=str,
)
def test_a_mistake_becomes_one_sentence(
    convert: Runner, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = convert(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    import re

    assert re.search(message, err), err
