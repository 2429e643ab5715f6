"""Conformance: what every stage, draw and program has to do, as one call that anyone can make on their own.

    from samplers.testing import check_program, conformance
    conformance("top_p")
    check_program(MyProgram(), {"width": 3})

Needs nothing but torch and numpy; works inside any test framework or none.
"""

from samplers.testing.conformance import Failed, conformance
from samplers.testing.programs import check_program
from samplers.testing.subject import Given, Reference, Subject

__all__ = ["Failed", "Given", "Reference", "Subject", "check_program", "conformance"]
