"""What adaptive stopping saves and loses beside the full vote: `drafthouse bench voting --part stopping`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import estimates
from bench.claims import Claim
from bench.estimates import Figure
from bench.progress import Begin, Done
from bench.vote_rules import MOST, SC, ticking
from bench.vote_samples import INDEPENDENT, Drawing, Size
from voting.replay_stopping import Stopped, try_stops
from voting.stopping.watch import read_stop

TOLERATED = 0.005  # accuracy lost
SETTINGS: tuple[Mapping[str, Any], ...] = (
    *({"rule": "beta", "threshold": value} for value in (0.9, 0.95, 0.99, 0.999)),
    *({"rule": "esc", "window": value} for value in (3, 5, 8, 12)),
    *({"rule": "mode_cert", "alpha": value} for value in (0.2, 0.1, 0.05, 0.01)),
)
DEFAULTS = ("beta, threshold 0.95", "esc, window 5", "mode_cert, alpha 0.05")


def name_of(setting: Mapping[str, Any]) -> str:
    rule, *others = setting.items()
    return ", ".join([str(rule[1]), *(f"{name} {value:g}" for name, value in others)])


@dataclass(frozen=True)
class Row:
    """One setting; figures are means over problems and repeats."""

    saved: Figure  # share of the samples
    lost: Figure  # accuracy
    fired: Figure  # share of the votes that it has ended
    same: Figure  # share of the votes with the answer of all samples


@dataclass
class Stopping:
    """Everything that was measured."""

    size: Size
    cap: int = MOST
    full: Figure = field(default_factory=lambda: Figure(float("nan"), float("nan"), float("nan")))  # accuracy
    rows: dict[str, Row] = field(default_factory=dict)
    best: str | None = None  # the setting that saves most of those that certainly lose no more than `TOLERATED`
    claims: list[Claim] = field(default_factory=list)


class Measuring:
    """Self-consistency under each rule, over the same samples in the same orders."""

    def __init__(self, drawing: Drawing, size: Size) -> None:
        self._drawing, self._size = drawing, size

    def measure(self, begin: Begin, done: Done) -> Stopping:
        """Raises Failed, SamplesFileError and OSError."""
        begin(self._drawing.missing(INDEPENDENT) + self._size.problems)
        problems = self._drawing.read(INDEPENDENT, done)
        stops = [read_stop(setting) for setting in SETTINGS]
        found = try_stops(ticking(problems, done), SC.poll, stops, MOST, self._size.repeats, seed=0)
        stopping = Stopping(self._size)
        stopping.full = estimates.mean(found[0].full_credit.mean(0), seed=14)
        stopping.rows = {name_of(setting): _row(one) for setting, one in zip(SETTINGS, found, strict=True)}
        within = {name: row for name, row in stopping.rows.items() if row.lost.high <= TOLERATED}
        stopping.best = max(within, key=lambda name: within[name].saved.value, default=None)
        stopping.claims = [
            Claim(
                f"{name} (the default) loses at most {100 * TOLERATED:g} points",
                f"loses {row.lost.text(2, 100)} points, saves {row.saved.text(1, 100)} % of the samples",
                estimates.verdict(row.lost, below=TOLERATED),
            )
            for name, row in ((name, stopping.rows[name]) for name in DEFAULTS)
        ]
        return stopping


def _row(stopped: Stopped) -> Row:
    tables = (
        1 - stopped.used / stopped.cap,
        stopped.full_credit - stopped.credit,
        stopped.fired,
        stopped.kept,
    )
    return Row(*(estimates.mean(table.mean(0), seed=14) for table in tables))
