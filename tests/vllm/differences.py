"""Points of the HTTP checklist that do not hold over vLLM, and why. Everything else does."""

from __future__ import annotations

from collections.abc import Mapping

_MIXED = "vLLM has no way in for inputs that are several tokens at once"

_REASONS: Mapping[str, str] = {  # file::test, its parameters in brackets where only some differ -> reason
    "test_extensions.py::test_c108_c109_spec_decode": "this engine does not speculate, and requests cannot make it",
    "test_programs.py::test_refused[vllm-fields3-temperature-": _MIXED,
    "test_programs.py::test_refused[vllm-fields37-n-": _MIXED,
    "test_programs.py::test_refused[vllm-fields38-max_tokens-": _MIXED,
    "test_step_importance.py::test_half_of_a_long_reasoning_is_cached": "vLLM computes a prompt anew to score it",
    "test_step_importance.py::test_it_may_fill_the_context": "vLLM wants room for a token behind a prompt it scores",
}
_PARAMETERS: Mapping[str, str] = {"superposed": _MIXED}  # part of a test's parameters, whatever the test -> reason


def reason_to_differ(nodeid: str) -> str | None:
    """Of a test as pytest names it. None: it has to pass."""
    name = nodeid.rpartition("/")[2]
    parameters = name.partition("[")[2]
    if (reason := next((why for part, why in _PARAMETERS.items() if part in parameters), None)) is not None:
        return reason
    return next((why for test, why in _REASONS.items() if name.startswith(test if "[" in test else f"{test}[")), None)
