"""A/B tests of decoding configurations on live traffic: assignment, exposures, statistics. Sits above the engine."""
