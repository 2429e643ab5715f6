"""Repeated sampling that returns one answer: extraction, equivalence, rules, budgets. Sits above the engine."""

from voting import rules  # noqa: F401 - they register themselves
