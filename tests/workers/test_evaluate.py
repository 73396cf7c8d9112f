"""A trained network tested again from disk gives the number that was reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_trials import run_quietly, small_model, small_spec

from wiring.errors import CheckpointError, ConfigError, DataError, StudyError
from wiring.network import build_network
from workers.data import load_data
from workers.evaluate import accuracy, evaluate_run


def test_evaluate_run_repeats_the_test_accuracy_and_loss_of_the_result(tmp_path: Path) -> None:
    result, _ = run_quietly(small_spec(epochs=3, lr=0.02), tmp_path)
    again = evaluate_run(tmp_path, None)
    assert again["accuracy"] == result.test_accuracy
    assert again["loss"] == result.test_loss
    assert again["data_digest"] == result.data_digest
    assert again["images"] == 359


def test_evaluate_run_takes_other_data_of_the_same_shape(tmp_path: Path) -> None:
    spec = small_spec()
    run_quietly(spec, tmp_path)
    assert evaluate_run(tmp_path, spec.data.replace(test=0.5))["images"] > 800
    with pytest.raises(ConfigError, match="has 1x8x8 images"):
        evaluate_run(tmp_path, spec.data.replace(side=8))


def test_missing_or_foreign_weights_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"spec\.json: cannot be read"):
        evaluate_run(tmp_path, None)
    run_quietly(small_spec(), tmp_path)
    weights = tmp_path / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-50])
    with pytest.raises(CheckpointError, match="does not hold this network's weights") as caught:
        evaluate_run(tmp_path, None)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot be read"):
        evaluate_run(tmp_path, None)


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_counts_images_whatever_the_batches_and_restores_the_mode(training: bool) -> None:
    data = load_data(small_spec().data)
    network = build_network(small_model(), seed=0).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = {accuracy(network, data.val_batches(size)) for size in (1, 7, 1000)}
    assert len(found) == 1
    assert network.training is training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_no_images_at_all_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no images"):
        accuracy(build_network(small_model(), seed=0), [])
