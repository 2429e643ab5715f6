"""The decode engine: requests, scheduling, KV memory and model runners. Knows nothing about HTTP or text."""
