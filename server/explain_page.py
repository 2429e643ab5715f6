"""Traced tokens as one HTML page that needs nothing else: a picture per token, bars through the stages.

The page works without its script: then all tokens stand one below the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from samplers.trace import TokenTrace
from server.explain_table import Column, columns, drawn_by, percent, stage_values

if TYPE_CHECKING:
    from server.explain import Setting

TEMPLATE = Path(__file__).with_suffix(".html")


def page(setting: Setting, traces: Sequence[TokenTrace]) -> str:
    """The whole document."""
    chain = "".join(
        f"<li>{escape(item['name'])} <b>{escape(stage_values(setting, item['name']))}</b></li>"
        for item in setting.sampler
    )
    parts = {
        "TITLE": escape(f"{setting.model}: {setting.prompt[:60]}"),
        "MODEL": escape(setting.model),
        "SEED": str(setting.seed),
        "CHAIN": chain,
        "PROMPT": escape(setting.prompt),
        "CHIPS": "".join(_chip(setting, at, trace) for at, trace in enumerate(traces, 1)),
        "TOKENS": "".join(_token(setting, at, trace) for at, trace in enumerate(traces, 1)),
    }
    pieces = TEMPLATE.read_text(encoding="utf-8").split("%%")  # text, name, text, name, ..., text
    return "".join(parts[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _final(trace: TokenTrace) -> float:
    return trace.stages[-1].drawn[1] if trace.stages else trace.probability


def _chip(setting: Setting, at: int, trace: TokenTrace) -> str:
    name = setting.names[trace.token]
    text = name[1:-1] if name[0] in "'\"" else name
    tip = f"{name}: model {percent(trace.probability)}, chain {percent(_final(trace))}"
    shade = f"--p:{trace.probability:.3f}"
    return f'<a href="#t{at}" style="{shade}" data-tip="{escape(tip)}">{escape(text) or "&nbsp;"}</a>'


def _token(setting: Setting, at: int, trace: TokenTrace) -> str:
    shown = columns(setting, trace)
    cards = [_card(setting, trace, column, shown[i - 1] if i else None) for i, column in enumerate(shown)]
    return (
        f'<section id="t{at}" aria-label="token {at}"><h2><small>{at}</small> '
        f"<code>{escape(setting.names[trace.token])}</code></h2>"
        f"<p>The model gave it <b>{percent(trace.probability)}</b>, the chain <b>{percent(_final(trace))}</b>.</p>"
        f'<div class="cards">{"".join(cards)}{_draw(setting, trace)}</div></section>'
    )


def _card(setting: Setting, trace: TokenTrace, column: Column, before: Column | None) -> str:
    if before is None:
        facts = [f"{column.possible} possible", f"entropy {column.entropy:.2f}"]
    else:
        facts = [
            f"{before.possible} → {column.possible} possible",
            f"removed {percent(column.removed or 0.0)}",
            f"entropy {before.entropy:.2f} → {column.entropy:.2f}",
        ]
    facts += [f"random {number:.6f}" for number in column.random]
    bars = "".join(
        _bar(setting.names[token], chance, None if before is None else before.chances[token], token == trace.token)
        for token, chance in column.chances.items()
    )
    return (
        f"<article><h3>{escape(column.name)} <small>{escape(column.values)}</small></h3>"
        f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p><ol>{bars}</ol></article>'
    )


def _bar(name: str, chance: float, before: float | None, drawn: bool) -> str:
    gone = chance == 0
    tip = f"{name}: {percent(chance)}" if before is None else f"{name}: {percent(before)} → {percent(chance)}"
    kinds = " ".join(kind for kind, applies in (("drawn", drawn), ("gone", gone)) if applies)
    was = "" if before is None else f'<i class="was" style="width:{before * 100:.2f}%"></i>'
    value = ("removed" if before else "–") if gone else percent(chance)
    return (
        f'<li class="{kinds}" tabindex="0" data-tip="{escape(tip)}"><code>{escape(name)}</code>'
        f'<span class="track">{was}<i class="is" style="width:{chance * 100:.2f}%"></i></span><b>{value}</b></li>'
    )


def _draw(setting: Setting, trace: TokenTrace) -> str:
    draw, line = trace.draw, ""
    if draw.interval is not None:
        low, high = draw.interval
        line = (
            f'<div class="line" data-tip="{escape(drawn_by(setting, trace))}" tabindex="0">'
            f'<i class="part" style="left:{low * 100:.3f}%;width:{(high - low) * 100:.3f}%"></i>'
            f'<i class="number" style="left:{draw.random[0] * 100:.3f}%"></i></div>'
            '<p class="ends"><span>0</span><span>1</span></p>'
        )
    values = stage_values(setting, draw.name) if draw.name != "greedy" else ""
    return (
        f'<article class="draw"><h3>{escape(draw.name)} <small>{escape(values)}</small></h3>'
        f'<p class="facts"><span>{escape(drawn_by(setting, trace))}</span></p>{line}'
        f"<p>drawn: <code>{escape(setting.names[trace.token])}</code></p></article>"
    )
