"""Repeated sampling that returns one answer: extraction, equivalence, rules, budgets. Sits above the engine."""
