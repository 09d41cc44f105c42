"""The server's side of a masked sum: it takes the masks off the sum, and can take them off nothing smaller."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedplatform.federated.secure.masked_messages import Group, RevealedShares
from fedplatform.federated.secure.masking import pair_seed
from fedplatform.federated.secure.shamir import Share, SharesError, join
from fedplatform.federated.secure.stream import add_mask


def unmask(
    total: np.ndarray,
    group: Group,
    *,
    sharing: Sequence[str],
    arrived: Collection[str],
    revealed: Sequence[RevealedShares],
) -> None:
    """Take the masks off ``total`` (d,) uint64, the sum in the ring of the masked vectors that arrived.

    ``sharing`` names the members that had sent their letters; between them masks were agreed. Who is among them and has
    not ``arrived`` has dropped out: what its partners agreed with it is taken off with its own key, which its shares
    give. Raises :class:`SharesError` where a secret has fewer shares than the group's threshold.
    """
    for name in arrived:
        seed = _secret([answer.of_seeds.get(name) for answer in revealed], group, what=f"seed of {name}")
        add_mask(total, seed, subtract=True)
    for absent in (name for name in sharing if name not in arrived):
        private = _secret([answer.of_keys.get(absent) for answer in revealed], group, what=f"key of {absent}")
        key = X25519PrivateKey.from_private_bytes(private)
        for member in group.members:
            if member.hospital_id in arrived:
                # The sign that the member gave it, turned round.
                later = group.point_of(absent) > group.point_of(member.hospital_id)
                add_mask(total, pair_seed(key, member.masking), subtract=not later)


def _secret(shares: Sequence[Share | None], group: Group, *, what: str) -> bytes:
    try:
        return join([share for share in shares if share is not None], threshold=group.threshold)
    except SharesError as error:
        raise SharesError(f"the sum of {', '.join(group.hospital_ids)} stays closed: {what}: {error}") from error
