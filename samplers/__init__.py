"""Token-level samplers: stages that reshape a row of logits, draws that pick from it, and their registry.

Imports torch and nothing of ours above it, so it can be used as a library.
"""
