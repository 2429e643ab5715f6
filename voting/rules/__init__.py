"""Voting rules, one file each. Importing this package registers them, as importing `voting.outcome` does."""

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
