"""Benchmarks: side by side with a named peer, interleaved in one run. Nothing here is a test."""
