"""Voting rules, one file each."""

from voting.rules import (  # noqa: F401 - they register themselves
    bon,
    complexity,
    deepconf,
    iew,
    pc,
    ppl,
    rpc,
    sc,
    usc,
    verbalised,
)
