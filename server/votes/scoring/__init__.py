"""Scores of samples for the rules that read them: by models, by reward endpoints, by installed scorers."""

from server.votes.scoring.request import check_scorer, scored
from server.votes.scoring.scored import Scored

__all__ = ["Scored", "check_scorer", "scored"]
