"""The `drafthouse vote` commands: samples drawn from a server, and votes over samples that have been drawn."""
