"""RPG, the grammar-based repetition penalty for code (Dong et al., arXiv 2505.10402), as stage 7 of the chain.

`stage.py` is the sampler, `runs.py` what it counts, `grammar.py` what a language has to be; the languages that come
with it register themselves here.
"""

from samplers.rpg import python, stage  # noqa: F401 - they register themselves
