"""Decoding programs: requests that keep more than one continuation alive. One file per program."""
