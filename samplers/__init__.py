"""Token-level samplers: stages that reshape a row of logits, draws that pick from it, and their registry.

Imports torch and nothing of ours above it, so it can be used as a library.
"""

from samplers import gumbel, iid, masks, min_p, penalties, temperature, top_k, top_p  # noqa: F401 - they register themselves
