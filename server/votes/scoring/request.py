"""The field `scorer` of a voting rule: who it names, and asking them.

A scorer that fails costs a vote the scores and nothing else. Lives in the event loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.runners.base import Capability
from server.errors import refuse
from server.runner_limits import unsupported
from server.state import ServerState
from server.votes.problem import Problem
from server.votes.scoring.installed import InstalledScorer
from server.votes.scoring.model import ModelScorer
from server.votes.scoring.scored import FAILED, Judge, Scored, ScorerFailed, Scores
from voting.contract import Sample
from voting.scorers import LIKELIHOOD, SCORERS, name_of, responses, with_given, with_likelihoods

log = logging.getLogger(__name__)


def check_scorer(spec: str | Mapping[str, Any], state: ServerState, path: str) -> None:
    """Refuse a scorer that this server does not have. spec: as a rule has parsed it; path: of the field."""
    if spec != LIKELIHOOD:
        _judge(spec, state, path)


async def scored(
    spec: str | Mapping[str, Any], problem: Problem, samples: Sequence[Sample], state: ServerState
) -> Scored:
    """The samples with the scores of a checked scorer under its name, a model's under the model's. A sample whose text
    cannot be scored has NaN; abstaining samples, and a single one, have none.

    Raises what a model's runner does when it is overloaded or dead: what a vote says does not depend on who else is
    served.
    """
    if spec == LIKELIHOOD:
        return Scored(tuple(with_likelihoods(samples)))
    texts = responses(samples)
    if not texts:
        return Scored(tuple(samples))
    found = await _ask(_judge(spec, state, "scorer"), name_of(spec), problem, texts)
    by_text = dict(zip(texts, found.values, strict=True))
    given = with_given(samples, name_of(spec), lambda sample: by_text[sample.text])
    return Scored(tuple(given), found.flags, found.prompt_tokens)


async def _ask(judge: Judge, name: str, problem: Problem, texts: Sequence[str]) -> Scores:
    try:
        return await judge.scores(problem, texts)
    except ScorerFailed as error:
        log.warning("scorer %s: %s", name, error, exc_info=error.__cause__ if log.isEnabledFor(logging.DEBUG) else None)
        return Scores((math.nan,) * len(texts), (FAILED,))


def _judge(spec: str | Mapping[str, Any], state: ServerState, path: str) -> Judge:
    if not isinstance(spec, str):
        return _model(spec, state, f"{path}.model")
    if spec in state.scorers:
        return state.scorers[spec]
    if spec in SCORERS:
        return InstalledScorer(SCORERS.get(spec))
    known = ", ".join([LIKELIHOOD, *sorted({*state.scorers, *(one.name for one in SCORERS)})])
    refuse(f"'{path}': unknown scorer '{spec:.200}'; known: {known}, and served models as {{\"model\": ...}}", path)


def _model(spec: Mapping[str, Any], state: ServerState, path: str) -> ModelScorer:
    served = {model.id: model for model in state.models}
    model = served.get(spec["model"])
    if model is None:  # a preset is no other scorer: it changes how a model draws, not what it finds probable
        refuse(f"'{path}': no model '{spec['model']:.200}' is served; served: {', '.join(served)}", path)
    if Capability.PROMPT_LOGPROBS not in model.runner.capabilities:
        raise unsupported(path, "scoring by a model is", model.runner)
    return ModelScorer(model, spec["condition"], spec["unit"], state.limits.prompts_in_flight)
