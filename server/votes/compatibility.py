"""What cannot be voted on together with the rest of a request, and what is to be known about its samples."""

from __future__ import annotations

from samplers.chain import Chain
from samplers.registry import DRAWS
from server.errors import refuse
from server.schema.common import GenerationBody
from server.state import ServedModel, ServerState
from server.votes.request import VoteRequest
from server.votes.result import NOT_IID
from server.votes.scoring import check_scorer
from voting.budget import CAP
from voting.contract import Drawing

OFF_MODEL = "off_model"  # the sampler's distribution is not the model's


def check_vote(
    vote: VoteRequest, body: GenerationBody, best_of: int | None, chain: Chain, model: ServedModel, state: ServerState
) -> None:
    """Refuse what a vote excludes. Raises a 400 that names the field."""
    drawing = vote.rule.drawing(vote.values)
    if body.n not in (None, 1):
        refuse("'voting' returns one choice: 'n' must be 1", "n")
    if best_of is not None:
        refuse("'best_of' excludes 'voting'", "best_of")
    if body.max_tokens == 0:
        refuse("'voting' needs 'max_tokens' of at least 1", "max_tokens")
    if chain.greedy and chain.program is None and vote.samples > 1 and drawing is not Drawing.CHAINED:
        message = f"at temperature 0 all {vote.samples} samples of the vote would be the same"
        refuse(message, "temperature", "degenerate_sampling")
    if vote.top is not None:
        if body.logprobs_mode == "processed":
            refuse(f"'{vote.rule.name}' weighs raw log-probabilities: 'logprobs_mode' must be raw", "logprobs_mode")
        if vote.top > model.runner.vocab_size:
            refuse(f"the model has only {model.runner.vocab_size} tokens", "voting.params.topk")
    if drawing is not Drawing.INDEPENDENT:
        _check_rounds(vote, body, chain)
    if chain.program is not None and not vote.stop.never_fires:
        refuse(f"'{chain.program.name}' makes all its choices together: it excludes stopping rules", "voting.stop")
    if vote.stop.rule.needs_iid and depends(vote, chain):
        refuse(f"'{vote.stop.rule.name}' needs samples that do not depend on each other", "voting.stop", NOT_IID)
    if vote.at_once is not None and (chain.program is not None or DRAWS.get(chain.draw.name).shared_noise):
        name = chain.draw.name if chain.program is None else chain.program.name
        refuse(f"'{name}' makes all samples together: it excludes 'voting.at_once'", "voting.at_once")
    if vote.at_once is not None and drawing is Drawing.CHAINED:
        refuse(f"'{vote.rule.name}' draws one sample after the other: 'at_once' has no effect", "voting.at_once")
    if vote.reallocate and CAP * vote.samples > state.limits.max_k:
        most = state.limits.max_k // CAP
        refuse(f"with 'voting.reallocate' a prompt may have {CAP} times 'samples': at most {most}", "voting.samples")
    if vote.reallocate and vote.stop.never_fires and chain.program is None:
        refuse("'voting.reallocate' has no effect without a stopping rule: nothing is left over", "voting.reallocate")
    if "scores" in vote.rule.needs(vote.values):
        check_scorer(vote.values["scorer"], state, "voting.params.scorer")


def _check_rounds(vote: VoteRequest, body: GenerationBody, chain: Chain) -> None:
    """Samples that are drawn one after the other, or in two rounds."""
    name = vote.rule.name
    if chain.program is not None:
        refuse(f"'{chain.program.name}' makes all its choices together, '{name}' draws them in rounds", "voting.rule")
    if DRAWS.get(chain.draw.name).shared_noise:
        refuse(f"the draw '{chain.draw.name}' draws all samples together, '{name}' in rounds", "voting.rule")
    if body.prompt_boundary not in (None, "off"):
        refuse(f"'prompt_boundary' excludes '{name}', which draws in rounds", "prompt_boundary")
    if vote.rule.drawing(vote.values) is Drawing.CHAINED:
        for field in ("continue_final_message", "truncate_prompt_tokens"):
            if getattr(body, field, None):
                refuse(f"'{field}' excludes '{name}', whose prompts go on behind the first one", field)
    if vote.reallocate:
        refuse(f"'voting.reallocate' excludes '{name}', which draws in rounds", "voting.reallocate")


def depends(vote: VoteRequest, chain: Chain) -> bool:
    """Whether what one sample is says something about another."""
    together = chain.program is not None or DRAWS.get(chain.draw.name).shared_noise
    return together or vote.rule.drawing(vote.values) is not Drawing.INDEPENDENT


def flags_of(vote: VoteRequest, body: GenerationBody, chain: Chain) -> tuple[str, ...]:
    """What a vote says about its samples before they are drawn."""
    shaped = chain.greedy or chain.stages or DRAWS.get(chain.draw.name).sees_raw or chain.program is not None
    off_model = (OFF_MODEL,) if shaped or body.min_tokens else ()
    return off_model + ((NOT_IID,) if depends(vote, chain) else ())
