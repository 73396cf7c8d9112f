"""Commands that train: search, resume, train, evaluate."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli import options
from search.config import StudyConfig
from wiring.errors import ConfigError

if TYPE_CHECKING:
    from search.driver import Outcome
    from search.study import Study

RUNS = Path("wiring-runs")


def search(
    space: options.Space = None,
    op: options.Ops = None,
    rule: options.Rules = None,
    node_rule: options.NodeRule = None,
    density: options.Density = None,
    edges: options.Edges = None,
    budget: options.Budgets = None,
    densities: options.Densities = None,
    pool: options.Pool = None,
    pretrained: options.Pretrained = False,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    algorithm: Annotated[
        str | None, typer.Option(help="Search algorithm ('wiring list algorithms').")
    ] = None,
    minimize: Annotated[
        list[str] | None,
        typer.Option(
            help="Cost to minimise beside the error, repeatable: multiplications, additions, "
            "xnors, weight_bits, energy, live_edges."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="asha (stops weak trials early) or none.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many networks to try.")] = None,
    epochs: options.Epochs = None,
    max_time: options.MaxTime = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs of one trial.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of one trial.")] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at a time (default: as many as fit).")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="How often a trial that dies is started again.")
    ] = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    config: options.ConfigFile = None,
    name: options.Name = None,
    runs: options.Runs = RUNS,
    address: options.Address = None,
    token_file: options.TokenFile = None,
    tracking_uri: options.Tracking = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Search for networks that are accurate and cheap, and show the Pareto front."""
    study_config = options.study_config(
        config,
        settings,
        space=space,
        space__pool=pool,
        space__pretrained=pretrained,
        op=options.names(op),
        rule=options.names(rule),
        node_rule=node_rule,
        budget=options.budget(density, edges, budget, densities),
        data__name=data,
        data__root=str(data_root.absolute()) if data_root else None,
        data__download=download,
        algorithm=algorithm,
        minimize=options.names(minimize),
        scheduler=scheduler,
        trials=trials,
        train__epochs=epochs,
        max_time=options.duration(max_time),
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        concurrent=concurrent,
        retries=retries,
        seed=seed,
    )
    if dry_run:
        print(options.as_toml(study_config.to_dict()), end="")
        return
    study = _create(study_config, name, runs, tracking_uri)
    from search import driver

    outcome = driver.drive(
        study,
        address=address,
        token_file=token_file,
        tracking_uri=tracking_uri,
        max_time=study_config.max_time,
    )
    _finish(outcome, as_json)


def resume(
    study: Annotated[str, typer.Argument(help="Name or directory of a study.")],
    max_time: options.MaxTime = None,
    runs: options.Runs = RUNS,
    address: options.Address = None,
    token_file: options.TokenFile = None,
    tracking_uri: options.Tracking = None,
    as_json: options.AsJson = False,
) -> None:
    """Go on with a study that was stopped or killed; finished trials are kept."""
    from search import driver
    from search.study import Study, find_study

    loaded = Study.load(find_study(study, runs))
    outcome = driver.drive(
        loaded,
        address=address,
        token_file=token_file,
        tracking_uri=tracking_uri,
        max_time=options.duration(max_time),
    )
    _finish(outcome, as_json)


def train(
    space: options.Space = None,
    op: options.Ops = None,
    rule: options.Rules = None,
    node_rule: options.NodeRule = None,
    density: options.Density = None,
    edges: options.Edges = None,
    budget: options.Budgets = None,
    densities: options.Densities = None,
    pool: options.Pool = None,
    pretrained: options.Pretrained = False,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    epochs: options.Epochs = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    config: options.ConfigFile = None,
    name: options.Name = None,
    runs: options.Runs = RUNS,
    tracking_uri: options.Tracking = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train one network in this process, the way a trial of a search does."""
    study_config = options.study_config(
        config,
        settings,
        space=space,
        space__pool=pool,
        space__pretrained=pretrained,
        op=options.names(op),
        rule=options.names(rule),
        node_rule=node_rule,
        budget=options.budget(density, edges, budget, densities),
        data__name=data,
        data__root=str(data_root.absolute()) if data_root else None,
        data__download=download,
        train__epochs=epochs,
        fix__seed=seed,
        trials=1,
    )
    if dry_run:
        print(options.as_toml(study_config.to_dict()), end="")
        return
    for kind in ("op", "rule"):
        if len(getattr(study_config, kind)) > 1:
            raise ConfigError(f"wiring train takes one --{kind}; wiring search takes several")
    study = _create(study_config, name, runs, tracking_uri, kind="train")
    from search import driver

    _finish(driver.drive(study, tracking_uri=tracking_uri), as_json)


def evaluate(
    run: Annotated[str, typer.Argument(help="A trial: its directory, or STUDY/0003.")],
    data_root: options.DataRoot = None,
    runs: options.Runs = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Test a trained network again, from what is on disk."""
    from search.study import find_trial
    from workers.evaluate import evaluate_run, read_spec

    directory = find_trial(run, runs)
    data = read_spec(directory).data
    moved = data.replace(root=str(data_root.absolute())) if data_root else None
    report = evaluate_run(directory, moved)
    if as_json:
        print(json.dumps({"run": str(directory), **report}))
    else:
        for key, value in report.items():
            print(f"{key}: {value}")


def _create(
    config: StudyConfig, name: str | None, runs: Path, uri: str | None, kind: str = "search"
) -> Study:
    """A new study, once all that can be checked without its data is right."""
    from search import driver
    from search.study import Study

    driver.check(config, uri)
    return Study.create(runs, name or _default_name(config), config, kind=kind)


def _default_name(config: StudyConfig) -> str:
    operators = "-".join(re.sub("[:,]", "-", component.name) for component in config.op)
    return f"{config.space.name}-{operators}-{datetime.now():%Y%m%d-%H%M%S}"


def _finish(outcome: Outcome, as_json: bool) -> None:
    """Show the end, to people on standard error and to machines on standard output."""
    from search.report import as_record, show

    show(outcome)
    if as_json:
        print(json.dumps(as_record(outcome)), flush=True)
    sys.exit(outcome.exit_code)
