"""Roles: what a labelled image is used for. Pure.

A role follows from the image's bytes and never changes. No image may be trained on while a near-copy tests the result,
so images taken shortly after each other share a role; where they cannot, the new one is used for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

TRAIN = "train"
CALIBRATE = "calibrate"
GOLDEN = "golden"

# The share of the images up to which each role goes.
SHARES = ((0.70, TRAIN), (0.85, CALIBRATE), (1.0, GOLDEN))


def role_by_hash(product: str, sha256: str) -> str:
    """Return the role of an image without neighbours in time: 70 % train, 15 % calibrate, 15 % are golden."""
    # The product is hashed too: the same bytes may be golden for one product and train another.
    digest = hashlib.sha256(f"{product}|{sha256}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return next(role for up_to, role in SHARES if share < up_to or role == GOLDEN)


def role_among(product: str, sha256: str, neighbours: Iterable[str | None]) -> str | None:
    """Return the role of a new image whose near-copies in the set have the roles `neighbours`.

    Theirs, if they agree; None (used for nothing) if they do not. Neighbours without a role do not count.
    """
    roles = {role for role in neighbours if role is not None}
    if not roles:
        return role_by_hash(product, sha256)
    return roles.pop() if len(roles) == 1 else None
