"""What `drafthouse vote` does with files of samples: reads, votes, prints a table, writes JSON and a picture."""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from bench.figures import require
from server.vote_cli import plots, tables
from server.vote_cli.inputs import fewest, integers, name_or_json, polls, read, reading, sizes
from voting import calibration
from voting.contract import VOTING_RULES
from voting.coverage import Count, log_spaced
from voting.coverage import coverage as coverage_at
from voting.intervals import interval
from voting.poll import Poll
from voting.power_law import FURTHEST, fit_power_law
from voting.records import finite
from voting.replay import counts
from voting.replay import replay as replay_votes
from voting.replay_stopping import try_stops
from voting.samples_file import Problem
from voting.stopping.contract import STOPPING_RULES
from voting.stopping.watch import read_stop

WIDTH = 140  # characters of tables that go to a file
MOST_ADAPTIVE = 40  # samples of a vote with a stopping rule that does not say


def replay(
    file: Path,
    methods: str,
    k: str | None,
    repeats: int,
    seed: int,
    params: str | None,
    equiv: str,
    rpc: str,
    json: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Raises SamplerError, SamplesFileError, OSError or NoFigures, as all of these."""
    check_plot(plot)
    problems = read(file, options)
    most = fewest(problems)
    ks = sizes(k, most)
    with reading(equiv, rpc == "published", options) as how:
        asked = polls(methods.split(","), params, how, ks)
        graded = replay_votes(_with_progress(problems, "voting"), asked, ks, repeats, seed)
        found = counts(problems, Poll(VOTING_RULES.get("sc"), {}, how))
    document = {
        "results": {name: {str(k): one.summary(seed) for k, one in by_k.items()} for name, by_k in graded.items()},
        **_coverage_document(found, sorted({*log_spaced(most), *ks}), seed),
        "settings": _settings(
            file, problems, k=ks, repeats=repeats, seed=seed, equiv=equiv, rpc=str(rpc), params=params, **options
        ),
    }
    _publish(document, tables.replay(document), json)
    if plot is not None:
        plots.replay(document, plot)


def coverage(
    file: Path, k: str | None, seed: int, equiv: str, json: Path | None, plot: Path | None, **options: Any
) -> None:
    check_plot(plot)
    problems = read(file, options)
    with reading(equiv, False, options) as how:
        poll = Poll(VOTING_RULES.get("sc"), {}, how)
        found = counts(_with_progress(problems, "grading"), poll)
    ks = integers(k, "k") if k else log_spaced(fewest(problems))
    document = {
        **_coverage_document(found, ks, seed),
        "counts": {problem.id: one._asdict() for problem, one in zip(problems, found, strict=True)},
        "settings": _settings(file, problems, k=ks, seed=seed, equiv=equiv, **options),
    }
    _publish(document, tables.coverage(document), json)
    if plot is not None:
        plots.coverage(document, plot)


def calibrate(
    file: Path,
    methods: str,
    k: int | None,
    bins: int,
    seed: int,
    params: str | None,
    equiv: str,
    rpc: str,
    json: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    check_plot(plot)
    problems = read(file, options)
    size = k or fewest(problems)
    with reading(equiv, rpc == "published", options) as how:
        asked = polls(methods.split(","), params, how, [size])
        graded = replay_votes(_with_progress(problems, "voting"), asked, [size], 1, seed)
    results = {}
    for name, by_k in graded.items():
        p, y = by_k[size].pairs(0)
        metrics = {
            metric: {"value": finite(of(p, y)), "interval": interval(of, p, y, seed=seed)}
            for metric, of in _METRICS.items()
        }
        table = [one._asdict() for one in calibration.reliability(p, y, bins)]
        missing = len(problems) - len(p)
        results[name] = {"k": size, "without_confidence": missing, "metrics": metrics, "bins": table}
    document = {
        "results": results,
        "settings": _settings(
            file, problems, k=size, bins=bins, seed=seed, equiv=equiv, rpc=str(rpc), params=params, **options
        ),
    }
    _publish(document, tables.calibrate(document), json)
    if plot is not None:
        plots.calibrate(document, plot)


def stop(
    file: Path,
    stop: Sequence[str] | None,
    method: str,
    samples: int | None,
    repeats: int,
    seed: int,
    params: str | None,
    equiv: str,
    json: Path | None,
    **options: Any,
) -> None:
    problems = read(file, options)
    cap = samples or min(MOST_ADAPTIVE, fewest(problems))
    names = list(dict.fromkeys(stop or sorted(rule.name for rule in STOPPING_RULES if rule.default_samples)))
    stops = [read_stop(name_or_json(name, "stop"), "stop") for name in names]
    with reading(equiv, False, options) as how:
        (poll,) = polls([method], params, how, [cap])
        found = try_stops(_with_progress(problems, "stopping"), poll, stops, cap, repeats, seed)
    document = {
        "results": {name: one.summary() for name, one in zip(names, found, strict=True)},
        "settings": _settings(
            file,
            problems,
            method=method,
            samples_cap=cap,
            repeats=repeats,
            seed=seed,
            equiv=equiv,
            params=params,
            **options,
        ),
    }
    _publish(document, tables.stop(document), json)


def _coverage_document(found: Sequence[Count], ks: Sequence[int], seed: int) -> dict[str, Any]:
    points = [coverage_at(found, k, seed) for k in ks]
    law = fit_power_law(ks, [point.value for point in points])
    further = [] if law is None else [max(ks) * factor for factor in (2, 5, FURTHEST)]
    return {
        "coverage": {str(one.k): {"pass_at_k": one.value, "interval": one.interval} for one in points},
        "power_law": None
        if law is None
        else {
            "a": law.a,
            "b": law.b,
            "residuals": {str(k): one for k, one in zip(law.ks, law.residuals, strict=True)},
            "extrapolated": {str(k): law.at(k) for k in further},
        },
    }


def _settings(file: Path, problems: Sequence[Problem], **others: Any) -> dict[str, Any]:
    sizes = [len(problem.samples) for problem in problems]
    return {"file": file.name, "problems": len(problems), "samples": [min(sizes), max(sizes)], **others}


def _with_progress(problems: Sequence[Problem], what: str) -> Iterator[Problem]:
    """On stderr, so that the table can be piped."""
    console = Console(stderr=True)
    yield from track(problems, what, console=console, transient=True, disable=not console.is_terminal)


def _publish(document: dict[str, Any], shown: tables.Shown, file: Path | None) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    for part in shown:
        console.print(part)
    if file is not None:
        text = jsonlib.dumps(document, indent=1, allow_nan=False)
        file.write_text(text + "\n", encoding="utf-8")


def check_plot(plot: Path | None) -> None:
    """Before the work, and not after it, that there is something to draw with."""
    if plot is not None:
        require()


_METRICS: Mapping[str, Callable[..., float]] = {
    "ece": calibration.ece,
    "ece_15_bins": lambda p, y: calibration.ece(p, y, 15),
    "ece_equal_mass": lambda p, y: calibration.ece(p, y, binning="mass"),
    "ece_published": lambda p, y: calibration.ece(p, y, binning="published"),
    "brier": calibration.brier,
    "nll": calibration.nll,
    "auroc": calibration.auroc,
    "aurc": calibration.aurc,
}
