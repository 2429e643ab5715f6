"""What acceptance rates verifiers have and could have, in closed form: rows p, q in, probabilities out.

Tensors are fp64 with the vocabulary last. Nothing here takes part in decoding but the factor of K-SEQ.
"""
