"""Votes: many samples of a prompt, one answer. Wires the voting library to generation."""
