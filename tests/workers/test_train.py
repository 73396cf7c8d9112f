"""The optimiser's settings do what they say, and a restored trainer is the trainer that was."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from small_trials import small_model, small_spec

from wiring.config import parse
from wiring.errors import CheckpointError, ConfigError
from workers.checkpoint import Checkpoint
from workers.data import ImageData, load_data
from workers.device import pick_device, rng_state, seed_everything, set_rng_state
from workers.schedule import learning_rate
from workers.spec import TrainConfig, TrialSpec
from workers.train import Trainer


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(small_spec().data)


def trainer(data: ImageData, spec: TrialSpec) -> Trainer:
    return Trainer(spec, data, torch.device("cpu"))


def rates(steps: int, **settings: Any) -> list[float]:
    train = parse(TrainConfig, {"epochs": 4, "lr": 0.8, **settings})
    return [learning_rate(train, step, steps) for step in range(4 * steps)]


def test_cosine_falls_from_the_full_rate_towards_zero_each_step() -> None:
    values = rates(10, schedule="cosine")
    assert values[0] == 0.8
    assert values[20] == pytest.approx(0.4)
    assert 0 < values[-1] < 0.002
    assert values == sorted(values, reverse=True)


def test_step_multiplies_by_decay_at_each_milestone() -> None:
    values = rates(5, schedule="step", milestones=[1, 3], decay=0.5)
    assert values == [0.8] * 5 + [0.4] * 10 + [0.2] * 5


def test_constant_stays_and_warmup_rises_linearly_to_the_full_rate() -> None:
    assert rates(4, schedule="constant") == [0.8] * 16
    warm = rates(4, schedule="constant", warmup_epochs=1.0)
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8] + [0.8] * 12)


def test_cosine_after_warmup_starts_at_the_full_rate_and_covers_the_remaining_epochs() -> None:
    values = rates(10, schedule="cosine", warmup_epochs=2.0)
    assert values[20] == 0.8
    assert values[30] == pytest.approx(0.4)


def test_warmup_longer_than_the_training_only_rises() -> None:
    values = rates(10, schedule="cosine", warmup_epochs=8.0)
    assert values[-1] == pytest.approx(0.4)
    assert values == sorted(values)


def change(data: ImageData, **train: Any) -> torch.Tensor:
    """How far one step of plain descent moves all parameters, as one vector."""
    model = small_model(rule="random")
    spec = small_spec(model, lr=1.0, momentum=0.0, schedule="constant", **train)
    subject = trainer(data, spec)
    before = torch.nn.utils.parameters_to_vector(subject.network.parameters()).detach()
    x, y = next(data.train_batches(1, batch_size=32, seed=0))
    subject._train_step(x, y)
    return torch.nn.utils.parameters_to_vector(subject.network.parameters()).detach() - before


def test_clip_norm_bounds_the_gradient_over_all_parameters(data: ImageData) -> None:
    free = change(data, weight_decay=0)
    clipped = change(data, weight_decay=0, clip_norm=0.01)
    assert free.norm() > 0.1
    assert clipped.norm() == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_pulls_at_every_parameter_dead_edges_included(data: ImageData) -> None:
    spec = small_spec(small_model(rule="random"))
    start = torch.nn.utils.parameters_to_vector(trainer(data, spec).network.parameters()).detach()
    pulled = change(data, weight_decay=0.1) - change(data, weight_decay=0)
    torch.testing.assert_close(pulled, -0.1 * start, atol=1e-6, rtol=1e-4)


def test_label_smoothing_raises_the_training_loss_only(data: ImageData) -> None:
    rows = [
        trainer(data, small_spec(label_smoothing=s, lr=1e-9)).run_epoch(None, lambda: None)
        for s in (0.0, 0.5)
    ]
    assert rows[1]["train_loss"] != pytest.approx(rows[0]["train_loss"], abs=1e-4)
    assert rows[1]["val_loss"] == pytest.approx(rows[0]["val_loss"], abs=1e-4)


@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_trainer_restored_in_any_step_goes_on_to_the_same_weights(
    data: ImageData, step: int
) -> None:
    spec = small_spec(checkpoint_steps=1, clip_norm=1.0, nesterov=True)
    whole = trainer(data, spec)
    packed: dict[int, Checkpoint] = {}

    def keep() -> None:
        tensors, state = whole.pack()
        copied = {name: tensor.clone() for name, tensor in tensors.items()}
        # As it comes back from JSON, of which nothing may be changed later.
        packed[whole.global_step] = Checkpoint(
            whole.global_step, copied, {**state, "history": list(state["history"])}
        )

    while not whole.finished:
        whole.run_epoch(None, keep)
        keep()
    assert whole.steps == 4
    expected = torch.rand(3), np.random.rand(3).tolist(), random.random()

    torch.rand(100)
    again = trainer(data, spec)
    again.unpack(packed[step])
    assert again.global_step == step
    while not again.finished:
        again.run_epoch(None, lambda: None)
    (before, _), (after, _) = whole.pack(), again.pack()
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    # `before` was taken after the numbers were drawn.
    assert {name for name in before if not name.startswith("rng/")} <= same
    found = torch.rand(3), np.random.rand(3).tolist(), random.random()
    assert torch.equal(expected[0], found[0])
    assert expected[1:] == found[1:]


def test_a_checkpoint_made_with_other_data_is_refused(data: ImageData) -> None:
    subject = trainer(data, small_spec())
    tensors, state = subject.pack()
    with pytest.raises(CheckpointError, match="was made with data 000000000000, 'digits' now is"):
        subject.unpack(Checkpoint(0, tensors, {**state, "data": "0" * 64}))


def test_every_generator_is_restored_bit_for_bit() -> None:
    seed_everything(3)
    random.gauss(0, 1)
    np.random.normal()
    state = rng_state()
    draw = [torch.rand(5).tolist(), random.gauss(0, 1), np.random.normal(), random.random()]
    seed_everything(4)
    set_rng_state(state)
    assert draw == [torch.rand(5).tolist(), random.gauss(0, 1), np.random.normal(), random.random()]


def test_mixed_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixed_precision needs a GPU"):
        pick_device(TrainConfig(mixed_precision=True, device="cpu"))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU is visible"):
        pick_device(TrainConfig(device="cuda"))
    assert pick_device(TrainConfig()).type == "cpu"


def test_training_with_a_loss_scaler_learns_and_its_scale_is_restored(data: ImageData) -> None:
    # PyTorch's scaler and autocast run on a CPU too, though a trial refuses them there.
    spec = small_spec(mixed_precision=True, clip_norm=5.0, lr=0.02, epochs=3)
    subject = trainer(data, spec)
    rows = [subject.run_epoch(None, lambda: None) for _ in range(2)]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    subject.scaler.update(512.0)
    tensors, state = subject.pack()
    again = trainer(data, spec)
    again.unpack(Checkpoint(subject.global_step, tensors, json.loads(json.dumps(state))))
    assert again.scaler.get_scale() == 512.0
    again.run_epoch(None, lambda: None)


def test_a_loss_that_overflows_half_precision_skips_the_step_and_lowers_the_scale(
    data: ImageData,
) -> None:
    subject = trainer(data, small_spec(mixed_precision=True))
    x, y = next(data.train_batches(1, batch_size=32, seed=0))
    subject._train_step(x, y)
    before = torch.nn.utils.parameters_to_vector(subject.network.parameters()).clone()
    subject.scaler.update(2.0**120)
    subject._train_step(x, y)
    after = torch.nn.utils.parameters_to_vector(subject.network.parameters())
    assert torch.equal(before, after)
    assert subject.scaler.get_scale() == 2.0**119


def batch_norms(trained: Trainer) -> list[torch.nn.BatchNorm2d]:
    return [m for m in trained.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_moments_are_those_of_the_present_weights_whatever_training_left(data: ImageData) -> None:
    trained = trainer(data, small_spec(epochs=1))
    trained.run_epoch(None, lambda: None)
    norms = batch_norms(trained)
    calibrated = [norm.running_mean.clone() for norm in norms]
    for norm in norms:
        norm.running_mean.fill_(100.0)
    trained._calibrate()
    pairs = zip(calibrated, norms, strict=True)
    assert norms
    assert all(torch.equal(mean, norm.running_mean) for mean, norm in pairs)
    assert {norm.momentum for norm in norms} == {0.1}


def test_without_calibration_images_the_running_averages_of_training_stay(data: ImageData) -> None:
    trained = trainer(data, small_spec(epochs=1, calibration_images=0))
    norm = batch_norms(trained)[0]
    norm.running_mean.fill_(100.0)
    trained._calibrate()
    assert bool((norm.running_mean == 100.0).all())


def test_ages_of_edges_outlive_an_interruption(data: ImageData) -> None:
    spec = small_spec(epochs=3, lr=0.5)
    whole, rows = trainer(data, spec), []
    for _ in range(2):
        rows.append(whole.run_epoch(None, lambda: None))
    tensors, state = whole.pack()
    again = trainer(data, spec)
    again.unpack(Checkpoint(whole.global_step, tensors, json.loads(json.dumps(state))))
    for name, born in whole.births.items():
        assert torch.equal(again.births[name], born)
        assert torch.equal(born >= 0, again.network.graph.scope(name).live)
    rows.append(again.run_epoch(None, lambda: None))
    assert [row["swap_rate"] for row in rows] == [row["swaps"] / 100 for row in rows]
    assert 0 < rows[0]["mean_age"] == 1 - rows[0]["swap_rate"]
    assert rows[1]["mean_age"] < rows[2]["mean_age"] <= 3 - rows[2]["swap_rate"] * 3
    assert rows[2]["age_q1"] <= rows[2]["median_age"] <= rows[2]["age_q3"] == 3
