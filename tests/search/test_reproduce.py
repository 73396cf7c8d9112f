"""Recipes say what papers say, build the networks they name, go on where they were, and compare."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search import comparison, driver, reproduce
from search.algorithms.base import ALGORITHMS
from search.cli import main
from search.projection import study_tags
from search.recipe import Recipe, choose, digest, load_recipes, scaled
from search.records import StudyRecords
from search.reproduce import How, Reproduction
from search.study import Study
from wiring.errors import ConfigError, UnknownNameError
from wiring.network import ImageShape
from workers.trial import TrialResult

SHAPES = {
    "mnist": (1, 32, 10, 60_000),
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "imagenet": (3, 224, 1000, 1_281_167),
}
HERE = How(jobs=1)

# Mean and spread of every published row, read off the papers' tables once more.
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "lenet5-dense": (99.4, None),
    "lenet5-adder": (99.4, None),
    "lenet5-adder-full-ilr": (98.99, None),
    "lenet5-adder-sign-alr": (97.99, None),
    "lenet5-adder-sign-ilr": (97.72, None),
    "tiny-static-random": (76.1, 0.5),
    "tiny-static-dnw": (80.9, 0.6),
    "tiny-discrete-random": (77.3, 0.7),
    "tiny-discrete-dnw": (82.3, 0.6),
    "tiny-continuous-random": (78.5, 1.2),
    "tiny-continuous-dnw": (83.1, 0.3),
    "mobilenet-25-cifar10": (86.3, 0.2),
    "mobilenet-graph-random": (87.2, 0.1),
    "mobilenet-graph-no-update": (86.7, 0.5),
    "mobilenet-graph-l1": (84.3, 0.6),
    "mobilenet-graph-targeted-dropout": (89.2, 0.4),
    "mobilenet-graph-lottery": (87.9, 0.3),
    "mobilenet-graph-fine-tune-1": (89.4, None),
    "mobilenet-graph-fine-tune-01": (89.7, None),
    "mobilenet-graph-fine-tune-001": (88.7, None),
    "mobilenet-graph-dnw": (89.7, 0.2),
    "imagenet-mobilenet-25": (50.6, None),
    "imagenet-random-225": (53.3, None),
    "imagenet-small-15": (50.3, None),
    "imagenet-small-225": (59.9, None),
    "imagenet-dnw-225": (60.9, None),
    "imagenet-dnw-3": (65.0, None),
    "imagenet-random-49": (64.1, None),
    "imagenet-dnw-49": (70.4, None),
    "vgg-small-adder-cifar10": (93.72, None),
    "vgg-small-dense-cifar10": (93.80, None),
    "vgg-small-xnor-cifar10": (89.80, None),
    "vgg-small-adder-cifar100": (72.64, None),
    "vgg-small-dense-cifar100": (72.73, None),
    "vgg-small-xnor-cifar100": (65.41, None),
    "resnet20-adder-cifar10": (91.84, None),
    "resnet20-dense-cifar10": (92.25, None),
    "resnet20-xnor-cifar10": (84.87, None),
    "resnet20-adder-cifar100": (67.60, None),
    "resnet20-dense-cifar100": (68.14, None),
    "resnet20-xnor-cifar100": (54.14, None),
    "resnet32-adder-cifar10": (93.01, None),
    "hashednets-64": (96.83, None),
    "hashednets-small-64": (94.09, None),
    "bitwise-bits": (98.7, None),
    "resnet32-dense-cifar10": (93.29, None),
    "resnet32-xnor-cifar10": (86.74, None),
    "resnet32-adder-cifar100": (69.02, None),
    "resnet32-dense-cifar100": (69.74, None),
    "resnet32-xnor-cifar100": (56.21, None),
    "resnet18-adder-imagenet": (67.0, None),
    "resnet18-dense-imagenet": (69.8, None),
    "resnet18-xnor-imagenet": (51.2, None),
    "resnet50-adder-imagenet": (74.9, None),
    "resnet50-dense-imagenet": (76.2, None),
    "resnet50-100": (77.510, None),
    **{
        f"resnet50-{density}{which}": (mean, None)
        for which, row in (
            ("", (77.488, 77.610, 77.604, 77.536, 77.528, 77.290, 76.904, 76.158, 74.026)),
            (
                "-first-dense",
                (77.382, 77.284, 77.492, 77.564, 77.570, 77.456, 77.076, 76.600, 75.044),
            ),
        )
        for density, mean in zip(range(90, 0, -10), row, strict=True)
    },
}

OWN = """
paper = "nobody"
table = "digits"
schedule = "2 epochs"
effort = "seconds"
deviations = ["made up"]

row = [
  { name = "some-dnw", title = "DNW", settings = { rule = "dnw" }, published = { mean = 50 } },
]

[settings]
op = "dense"
space = { name = "mobilenet-graph", size = "eighth" }

[settings.data]
limit = 100
side = 8

[settings.train]
epochs = 2
batch_size = 40
lr = 0.1
"""


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return load_recipes()


@pytest.fixture
def own(tmp_path: Path) -> Recipe:
    return load_recipes(write_own(tmp_path))["some-dnw"]


def write_own(tmp_path: Path, **replaced: str) -> Path:
    folder, text = tmp_path / "recipes", OWN
    folder.mkdir(exist_ok=True)
    for old, new in replaced.items():
        text = text.replace(old, new)
    (folder / "some.toml").write_text(text)
    return folder


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow and pictures, whose own tests are elsewhere."""

    class Nowhere:
        parent_run_id, uri, error = None, "", None

        def __init__(self, *_: Any) -> None: ...
        def start(self) -> None: ...
        def close(self, deadline_s: float) -> None: ...
        def unsent(self) -> int:
            return 0

    monkeypatch.setattr(driver, "Mirror", Nowhere)
    for name in [name for name in vars(driver) if name.startswith("write_")]:
        monkeypatch.setattr(driver, name, lambda directory: None)


def test_the_papers_numbers_are_those_of_the_tables(recipes: dict[str, Recipe]) -> None:
    ours = {
        name: (one.published.mean, one.published.spread)
        for name, one in recipes.items()
        if one.published
    }
    assert ours == PUBLISHED


def test_every_rule_of_the_issue_is_compared_at_equal_edges(recipes: dict[str, Recipe]) -> None:
    rules = {one.config().rule[0].name for one in choose(["mobilenet-graph-quarter"], recipes)}
    assert rules >= {
        "dnw",
        "dnw-no-update",
        "random",
        "targeted-dropout",
        "lottery",
        "fine-tune",
        "rigl",
    }


@pytest.mark.parametrize("group", sorted({one.group for one in load_recipes().values()}))
def test_every_recipe_builds_the_network_that_it_names(
    recipes: dict[str, Recipe], group: str, tmp_path: Path
) -> None:
    for one in choose([group], recipes):
        config = one.planned(seeds=[0, 1])
        driver.check(config, None)
        channels, side, classes, images = SHAPES[config.data.name]
        study = Study.create(tmp_path, one.name, config, kind="reproduce")
        study.begin(ImageShape(channels=channels, side=side), classes=classes, images=images)
        trial = study.ask()
        assert trial is not None
        spec = study.spec(trial.params)
        assert spec.seed == 0
        assert (spec.model.space, spec.model.classes) == (config.space.name, classes)
        assert spec.train.model_dump(include=set(config.train)) == {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in config.train.items()
        }


def test_settings_reach_the_options_of_a_node_rule(recipes: dict[str, Recipe]) -> None:
    settings = {**recipes["lenet5-dense"].settings, "node_rule": "apoz"}
    recipe = recipes["lenet5-dense"].replace(settings=settings)
    config = recipe.planned(seeds=[0], settings=["node_rule.share=0.3"])
    assert config.to_dict()["node_rule"] == {"name": "apoz", "share": 0.3}


def test_all_means_every_recipe_and_a_group_its_rows(recipes: dict[str, Recipe]) -> None:
    assert choose(["all"], recipes) == list(recipes.values())
    assert {one.name for one in choose(["tiny", "lenet5-bwn", "tiny-static-dnw"], recipes)} == {
        "lenet5-bwn",
        *(
            f"tiny-{kind}-{rule}"
            for kind in ("static", "discrete", "continuous")
            for rule in ("random", "dnw")
        ),
    }
    with pytest.raises(UnknownNameError, match="unknown recipe 'lenet5-xnr'; did you mean lenet5"):
        choose(["lenet5-xnr"], recipes)


@pytest.mark.parametrize(
    ("scale", "epochs", "milestones", "warmup"),
    [
        (1.0, 160, [80, 120], 5),
        (0.15, 24, [12, 18], 0.75),
        (0.1, 16, [8, 12], 0.5),
        (0.0001, 1, [1, 1], 5 / 160),
    ],
)
def test_a_scale_shortens_epochs_milestones_and_warm_up_alike(
    scale: float, epochs: int, milestones: list[int], warmup: float
) -> None:
    train = {"epochs": 160, "milestones": [80, 120], "warmup_epochs": 5, "lr": 0.1}
    expected = {"epochs": epochs, "milestones": milestones, "warmup_epochs": warmup, "lr": 0.1}
    assert scaled(train, scale) == expected


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_a_scale_outside_of_0_to_1_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"--scale must be in 0\.\.1"):
        scaled({"epochs": 10}, scale)


def test_all_that_is_otherwise_than_in_the_recipe_is_recorded(recipes: dict[str, Recipe]) -> None:
    one = recipes["tiny-static-dnw"]
    place = {"name": "folder", "root": "/somewhere", "download": True}
    config = one.planned(
        seeds=[3, 4], scale=0.1, data=place, settings=["data.limit=9000", "train.lr=0.2"]
    )
    assert one.changes(config) == [
        "data cifar10 → folder",
        "train.epochs 160 → 16",
        "train.lr 0.1 → 0.2",
        "train.milestones [80, 120] → [8, 12]",
        "data.limit default → 9000",
    ]
    assert one.changes(one.planned(seeds=[7], data={"root": "/somewhere"})) == []


def test_a_study_is_the_same_whatever_its_seeds_and_place_and_another_for_another_scale(
    recipes: dict[str, Recipe],
) -> None:
    one = recipes["lenet5-adder"]
    key = digest(one.planned(seeds=[0]))
    assert digest(one.planned(seeds=[1, 2], data={"root": "/somewhere"})) == key
    assert digest(one.planned(seeds=[0], scale=0.5)) != key


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = write_own(tmp_path)
    (folder / "twin.toml").write_text(OWN)
    with pytest.raises(ConfigError, match=r"recipe 'some-dnw' is in some\.toml too"):
        load_recipes(folder)


def test_more_seeds_train_only_those_and_what_is_there_is_read(
    own: Recipe, tmp_path: Path, quiet: None
) -> None:
    first = reproduce.run(own, own.planned(seeds=[0]), 1.0, tmp_path / "runs", HERE)
    both = own.planned(seeds=[0, 1])
    partly = reproduce.collect(own, both, 1.0, tmp_path / "runs")
    second = reproduce.run(own, both, 1.0, tmp_path / "runs", HERE)
    again = reproduce.run(own, both, 1.0, tmp_path / "runs", HERE)
    assert (first.complete, partly.complete, second.complete) == (True, False, True)
    assert second.results[0] == first.results[0] == partly.results[0]
    assert again.results == second.results
    assert again.studies == second.studies
    assert len(second.studies) == 2
    journals = sorted((tmp_path / "runs").glob("*/journal.jsonl"))
    assert [len(path.read_text().splitlines()) for path in journals] == [2, 2]
    tags = study_tags(StudyRecords(journals[0].parent))
    assert tags["wiring.recipe"] == "some-dnw"
    assert (tags["wiring.scale"], tags["wiring.published"]) == ("1", "50")
    assert second.deviations == ["made up"]


def test_an_interrupt_leaves_what_the_same_command_goes_on_with(
    own: Recipe, tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own.planned(seeds=[0, 1], scale=0.5)
    train = driver.run_trial

    def interrupted(*arguments: Any, **settings: Any) -> TrialResult:
        result = train(*arguments, **settings)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(driver, "run_trial", interrupted)
        first = reproduce.run(own, config, 0.5, tmp_path / "runs", HERE)
    assert first.interrupted
    assert list(first.results) == [0]
    second = reproduce.run(own, config, 0.5, tmp_path / "runs", HERE)
    assert (second.complete, second.interrupted) == (True, False)
    assert second.results[0] == first.results[0]
    assert second.studies == first.studies


def test_missing_data_is_a_problem_of_the_result_and_leaves_no_study(
    recipes: dict[str, Recipe], tmp_path: Path, quiet: None
) -> None:
    one = recipes["lenet5-bwn"]
    config = one.planned(seeds=[0], data={"root": str(tmp_path)})
    outcome = reproduce.run(one, config, 1.0, tmp_path / "runs", HERE)
    assert not outcome.complete
    assert "MNIST: is missing" in outcome.problems[0]
    assert list((tmp_path / "runs").glob("*/study.json")) == []


def result(accuracy: float, seconds: float, edges: int) -> TrialResult:
    costs = dict.fromkeys(reproduce.COSTS, 0.0)
    return TrialResult(
        state="finished",
        epochs=1,
        best_epoch=1,
        val_accuracy=0.5,
        test_accuracy=accuracy,
        test_loss=1.0,
        costs={**costs, "live_edges": edges, "energy": 2e6, "weight_bits": 3200.0},
        reason=None,
        seconds=seconds,
        data_digest="",
        resumed_from=0,
    )


def test_the_table_shows_mean_spread_seeds_costs_and_deviations(recipes: dict[str, Recipe]) -> None:
    dnw, rigl = recipes["mobilenet-graph-dnw"], recipes["mobilenet-graph-rigl"]
    half = Reproduction(dnw, dnw.planned(seeds=[0, 1, 2], scale=0.5), 0.5)
    half.results = {0: result(0.88, 60, 100), 1: result(0.90, 80, 300)}
    none = Reproduction(rigl, rigl.planned(seeds=[0]), 1.0)
    none.problems = ["no data"]
    text = comparison.markdown([half, none], "wiring reproduce x")
    assert (
        "| mobilenet-graph-dnw | 89.7 ± 0.2 | 89.00 ± 1.41 | 2 of 3 | 80 of 160 | 200 | 2M | 3.2k "
        "| 1:10 |" in text
    )
    assert "| mobilenet-graph-rigl | – | – | 0 of 1 | 160 | – | – | – | – |" in text
    assert "- train.epochs 160 → 80 (mobilenet-graph-dnw)\n" in text
    assert "- 5% of the training images are held out to choose the epoch that is tested\n" in text
    assert "- mobilenet-graph-rigl: no data\n" in text
    assert text.startswith("`wiring reproduce x`\n")


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["wiring", "reproduce", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_the_command_trains_compares_and_writes_the_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    quiet: None,
) -> None:
    folder, runs, target = write_own(tmp_path), tmp_path / "runs", tmp_path / "table.md"
    flags = ["all", "--recipes", str(folder), "--runs", str(runs), "--jobs", "1", "--json"]
    more = ["--scale", "0.5", "--seeds", "2", "--markdown", str(target)]
    code, out, err = command(monkeypatch, capsys, *flags, *more)
    assert code == 0, err
    (record,) = json.loads(out)
    assert (record["recipe"], record["scale"], record["epochs"]) == ("some-dnw", 0.5, 1)
    assert list(record["results"]) == ["0", "1"]
    assert record["deviations"] == ["train.epochs 2 → 1", "made up"]
    assert "train.epochs 2 → 1" in err
    assert f"| some-dnw | 50.0 | {record['mean']:.2f} ± {record['spread']:.2f} |" in (
        target.read_text()
    )
    code, out, _ = command(monkeypatch, capsys, *flags, *more, "--collect")
    assert (code, json.loads(out)) == (0, [record])
    code, _, err = command(monkeypatch, capsys, *flags, "--collect")
    assert code == 1
    assert "0 of 3" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lenet5-addr"], "unknown recipe 'lenet5-addr'; did you mean lenet5-adder"),
        (["lenet5-adder", "--scale", "2"], "--scale must be in 0..1 and more than 0, got 2"),
        (["lenet5-adder", "--data", "mnits"], "recipe lenet5-adder: unknown data set 'mnits'"),
        (
            ["lenet5-adder", "--set", "rule.name=dnv"],
            "recipe lenet5-adder: unknown edge rule 'dnv'",
        ),
        ([], "name recipes or groups, or 'all'"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    code, _, err = command(monkeypatch, capsys, *arguments, "--runs", str(tmp_path / "runs"))
    assert code == 1
    assert sentence in err.strip().splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_recipe_whose_rule_is_not_installed_fails_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_own(tmp_path, **{'rule = "dnw"': 'rule = "not-there"'})
    code, _, err = command(monkeypatch, capsys, "all", "--recipes", str(folder))
    assert code == 1
    assert "error: recipe some-dnw: unknown edge rule 'not-there'" in err


def test_a_grid_asks_for_every_combination_once_and_begins_with_the_first() -> None:
    choices = {
        "width": FloatDistribution(0.1, 0.4, log=True),
        "layers": IntDistribution(1, 2),
        "seed": CategoricalDistribution((5, 6)),
    }
    grid = ALGORITHMS.get("grid")(
        dict(choices), ("maximize",), seed=0, options={}, mutate=lambda values, rng: values
    )
    asked = [grid.ask(number) for number in range(12)]
    assert asked[0] == {"width": 0.1, "layers": 1, "seed": 5}
    assert [one["seed"] for one in asked[:3]] == [5, 6, 5]
    assert len({tuple(one.values()) for one in asked}) == 12
    assert {round(one["width"], 6) for one in asked} == {0.1, 0.2, 0.4}
    assert grid.ask(12) == asked[0]
