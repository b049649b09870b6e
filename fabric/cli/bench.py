"""``fabric bench``: how quick each deployment is, and whether it was quicker before."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import orjson

from fabric.bench.runs import Run, compare, sparkline
from fabric.bench.trend import FIGURES
from fabric.cli import bench_trend
from fabric.cli.output import json_option, print_json, print_table
from fabric.contracts.errors import ConfigError

_HEADERS = ("DEPLOYMENT", "AT ONCE", "FIRST TOKEN", "P95", "BETWEEN TOKENS", "TOKENS/S", "USD/M OUTPUT", "ERRORS")

file_option = click.option(
    "--file", type=click.Path(path_type=Path), help="Folder of the results. [default: bench in the data directory]"
)


@click.group()
def bench() -> None:
    """Measure deployments, and compare with an earlier run."""


@bench.command()
@click.option("--deployment", multiple=True, help="Only this one; may be repeated. [default: all that have workers]")
@click.option("--workload", default="chat", show_default=True, help="chat, long-prompt, batch, or a JSON file.")
@click.option("--requests", type=click.IntRange(1, 100_000), help="For each deployment and concurrency.")
@click.option("--concurrency", type=click.IntRange(1, 256), multiple=True, help="Requests at once; may be repeated.")
@file_option
@json_option
def run(
    deployment: tuple[str, ...],
    workload: str,
    requests: int | None,
    concurrency: tuple[int, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Ask deployments of the running fabric, one after the other, and take the times."""
    from fabric._client_http import Http, Options
    from fabric._client_wire import Call
    from fabric.bench.workloads import read
    from fabric.cli.bench_load import measure

    given = {"requests": requests, "concurrency": concurrency or None}
    load = read(workload).model_copy(update={name: value for name, value in given.items() if value})
    http = Http(Options(retries=0))
    try:
        tiers = orjson.loads(http.send(Call("GET", "/v1/tiers")).body)["data"]
        there = {d["name"]: d for tier in tiers for d in tier["deployments"]}
        if unknown := [name for name in deployment if name not in there]:
            raise ConfigError(f"There is no deployment {unknown[0]}; there is {', '.join(sorted(there))}.")
        asked = deployment or tuple(name for name, one in there.items() if one["slots"])
        if not asked:
            raise ConfigError("No deployment has a worker; `fabric status` shows them.")
        points = tuple(measure(http, load, there[name]["model"], name, n) for name in asked for n in load.concurrency)
    finally:
        http.close()
    done = Run(load.name, _about(), points)
    folder = _folder(file)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "latest.json", done)
    with (folder / "history.jsonl").open("ab") as history:
        history.write(orjson.dumps(_summary(done)) + b"\n")
    if as_json:
        print_json(_summary(done))
        return
    print_table(_HEADERS, [[p.deployment, p.concurrency, *map(_shown, _picked(p.figures()))] for p in points])


@bench.command()
@click.argument("name")
@file_option
def save(name: str, file: Path | None) -> None:
    """Keep the latest run under a name."""
    folder = _folder(file)
    _write(_named(folder, name), _read(folder / "latest.json"))
    click.echo(f"saved as {name}")


@bench.command(name="compare")
@click.argument("name")
@click.option("--threshold", type=click.FloatRange(0, 10), default=0.1, show_default=True, help="0.1: a tenth worse.")
@file_option
@json_option
def compare_(name: str, threshold: float, file: Path | None, as_json: bool) -> int:
    """Hold the latest run against a saved one; status 1 if something is worse."""
    folder = _folder(file)
    before, after = _read(_named(folder, name)), _read(folder / "latest.json")
    if before.workload != after.workload:
        raise ConfigError(f"{name} is of workload {before.workload}, the latest run of {after.workload}.")
    findings = compare(before, after, threshold)
    if not findings:
        raise ConfigError("The two runs have no deployment and concurrency in common.")
    if as_json:
        print_json([{**_dumped(one.change), **{n: getattr(one, n) for n in _OF_FINDING}} for one in findings])
    else:
        rows = [
            [one.deployment, one.concurrency, one.figure, *map(_percent, _dumped(one.change).values()), one.verdict]
            for one in findings
        ]
        print_table(("DEPLOYMENT", "AT ONCE", "FIGURE", "CHANGE", "FROM", "TO", ""), rows)
    return int(any(one.verdict == "worse" for one in findings))


@bench.command()
@click.option("--figure", type=click.Choice(FIGURES), default=FIGURES[0], show_default=True, help="Of the small chart.")
@click.option("--deployment", help="Only this one.")
@click.option("--workload", help="Only this one.")
@click.option("--last", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Runs of each load.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with charts instead.")
@file_option
@json_option
def trend(
    figure: str,
    deployment: str | None,
    workload: str | None,
    last: int,
    html: Path | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Show how the figures went from run to run."""
    found = {
        load: entries
        for load, entries in sorted(bench_trend.read(_folder(file), last=last).items())
        if deployment in (None, load.deployment) and workload in (None, load.workload)
    }
    if html is not None:
        from fabric.cli.bench_page import page

        html.write_text(page(found), "utf-8")
        click.echo(f"{html} written", err=True)
    if as_json:
        print_json([bench_trend.dumped(load, entries) for load, entries in found.items()])
    if html is not None or as_json:
        return
    if not found:
        click.echo("No runs yet: `fabric bench run` makes one.")
    for number, (load, entries) in enumerate(found.items()):
        values = [value for entry in entries if (value := entry.figures[figure]) is not None]
        line = f"   {sparkline(values)} {figure}" if values else ""
        gap = "\n" if number else ""
        click.echo(f"{gap}{load.workload}: {load.deployment}, {load.concurrency} at once{line}")
        print_table([header.upper() for header in bench_trend.HEADERS], bench_trend.cells(entries))


_OF_FINDING = ("deployment", "concurrency", "figure", "verdict")


def _dumped(found: Any) -> dict[str, float | None]:
    return {name: getattr(found, name, None) for name in ("change", "low", "high")}


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:+.1%}"


def _picked(figures: dict[str, float | None]) -> list[float | None]:
    return [figures[name] for name in FIGURES]


def _shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _summary(run: Run) -> dict[str, Any]:
    """Without the single requests."""
    points = [
        {
            "deployment": p.deployment,
            "model": p.model,
            "concurrency": p.concurrency,
            "requests": len(p.samples),
            **p.figures(),
        }
        for p in run.points
    ]
    return {"workload": run.workload, "about": run.about, "points": points}


def _about() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.node()} {platform.machine()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "fabric": version("inference-fabric"),
    }


def _folder(file: Path | None) -> Path:
    return file or Path(os.environ.get("FABRIC_DATA_DIR") or ".fabric") / "bench"


def _named(folder: Path, name: str) -> Path:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name in ("latest", "history"):
        raise ConfigError("A name has letters, digits, dots, dashes and underscores; `latest` is taken.")
    return folder / f"{name}.json"


def _write(path: Path, run: Run) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(orjson.dumps(run.dump()))
    new.replace(path)


def _read(path: Path) -> Run:
    try:
        return Run.load(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no run {path.stem}: `fabric bench run` makes one, `fabric bench save` names it."
        ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{path} can't be read as a run.") from None
