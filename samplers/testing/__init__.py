"""Conformance: what every stage and draw has to do, as one call that anyone can make on their own.

    from samplers.testing import conformance
    conformance("top_p")

Needs nothing but torch and numpy; works inside any test framework or none.
"""

from samplers.testing.conformance import Failed, conformance
from samplers.testing.subject import Given, Reference, Subject

__all__ = ["Failed", "Given", "Reference", "Subject", "conformance"]
