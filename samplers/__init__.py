"""Token-level samplers: stages that reshape a row of logits, draws that pick from it, and their registry.

Imports torch and nothing of ours above it, so it can be used as a library.
"""

from samplers import (  # noqa: F401 - they register themselves
    adaptive_p,
    allowed_tokens,
    arithmetic,
    bad_words,
    basis_aware,
    cutoffs,
    dry,
    gumbel,
    iid,
    logit_bias,
    min_p,
    min_tokens,
    mirostat,
    no_repeat_ngram,
    penalties,
    reuse_cap,
    rpg,
    smoothing,
    tail_free,
    temperature,
    top_a,
    top_h,
    top_k,
    top_n_sigma,
    top_p,
    typical,
    xtc,
)
