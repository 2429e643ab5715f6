"""Verifiers, one file each: which of a tree's drafts are accepted, and the token that follows. Importing this package
registers them."""

from spec_decode.verify import (  # noqa: F401 - they register themselves
    block,
    hu,
    kseq,
    match,
    rrs,
    token,
    traversal,
    typical,
)
