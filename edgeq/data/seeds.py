"""Derive independent random streams from names and numbers.

Everything random in the data part is a function of a seed and of *where* it is used ("shuffle", epoch 3), never of
what was drawn before, so that any batch can be made again without replaying the ones that came first.
"""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded from all parts of `key`; different keys give unrelated streams.

    A cryptographic digest, not a sum: with `seed + epoch`, seed 0 at epoch 1 would repeat seed 1 at epoch 0.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # torch takes 63 bits
