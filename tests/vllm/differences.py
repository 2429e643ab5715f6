"""Points of the HTTP checklist that do not hold over vLLM, and why. Everything else does."""

from __future__ import annotations

from collections.abc import Mapping

_BOUNDARY = "covers of a prompt's end are weighed with log-probabilities of chosen tokens"
_CHOSEN = "vLLM's first generation gives log-probabilities of chosen tokens to the whole batch or to nobody"
_PROCESSED = "log-probabilities leave vLLM as the model gave them"

_MIXED = "vLLM has no way in for inputs that are several tokens at once"

_REASONS: Mapping[str, str] = {  # file::test, its parameters in brackets where only some differ -> reason
    "test_extensions.py::test_c108_c109_spec_decode": "this engine does not speculate, and requests cannot make it",
    "test_logprobs.py::test_c45_finite": f"{_CHOSEN}; {_PROCESSED}",
    "test_logprobs.py::test_other_ways_to_name_tokens": _CHOSEN,
    "test_logprobs.py::test_processed_mode": _PROCESSED,
    "test_programs.py::test_processed_and_chosen_logprobs": f"{_CHOSEN}; {_PROCESSED}",
    "test_programs.py::test_refused[vllm-fields3-temperature-": _MIXED,
    "test_programs.py::test_refused[vllm-fields37-n-": _MIXED,
    "test_programs.py::test_refused[vllm-fields38-max_tokens-": _MIXED,
    "test_prompt_boundary.py::test_what_follows_has_the_law_of_the_covers": _BOUNDARY,
    "test_prompt_boundary.py::test_tokens_spell_the_prompt_and_the_text": _BOUNDARY,
    "test_prompt_boundary.py::test_a_choice_does_not_depend_on_the_others": _BOUNDARY,
    "test_prompt_boundary.py::test_streams_say_the_same": _BOUNDARY,
    "test_prompt_boundary.py::test_the_echo_shows_the_prompt_once": _BOUNDARY,
    "test_prompt_boundary.py::test_greedy_takes_the_likeliest_cover": _BOUNDARY,
    "test_prompt_boundary.py::test_log_probabilities_of_the_first_token": _BOUNDARY,
    "test_prompt_boundary.py::test_limits_count_the_first_token": _BOUNDARY,
    "test_prompt_boundary.py::test_id_prompts_are_their_bytes": _BOUNDARY,
    "test_prompt_boundary.py::test_where_nothing_can_be_joined_the_answer_is_that_of_the_tokens": _BOUNDARY,
    "test_prompt_boundary.py::test_chat_continues_its_last_message_and_nothing_else": _BOUNDARY,
    "test_prompt_boundary.py::test_the_best_of_many": _BOUNDARY,
    "test_prompt_boundary.py::test_what_covers_cannot_honour_is_refused[vllm-fields4-": f"{_BOUNDARY}; {_PROCESSED}",
    "test_prompt_boundary.py::test_scoring_a_prompt_has_no_boundary": _BOUNDARY,
    "test_prompt_boundary.py::test_a_prompt_whose_covers_do_not_fit_is_too_long": _BOUNDARY,
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
