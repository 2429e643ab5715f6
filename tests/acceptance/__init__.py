"""Acceptance: the real command, the embedded model, and requests as independent clients send them."""
