"""Stopping rules, one file each: when enough samples of a prompt have been drawn."""

from voting.stopping import beta, esc, fixed, mode_cert  # noqa: F401 - they register themselves
