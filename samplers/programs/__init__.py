"""Decoding programs: requests that keep more than one continuation alive. One file per program."""

from samplers.programs import (  # noqa: F401 - they register themselves
    beam,
    conditional_beam,
    eager,
    priority,
    superposed,
    tree,
)
