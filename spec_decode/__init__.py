"""Speculative decoding: where drafts come from, and the rules that accept or reject them.

Imports torch and `samplers`, and nothing of ours above them, so it can be used as a library.
"""
