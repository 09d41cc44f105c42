"""Masked sums: exact to the fixed-point step, whoever drops out; and nothing smaller than the sum can be had."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedplatform.federated.secure.fixed_point import FixedPoint, RangeError
from fedplatform.federated.secure.key_agreement import SealError, agree, seal, unseal
from fedplatform.federated.secure.masked_messages import Group, MaskedVector, RevealedShares, SealedShares
from fedplatform.federated.secure.masking import Masker, ProtocolError, least_threshold
from fedplatform.federated.secure.shamir import PRIME, Share, SharesError, join, split
from fedplatform.federated.secure.stream import add_mask
from fedplatform.federated.secure.unmasking import unmask

FIXED_POINT = FixedPoint()


class Ward:
    """A group of hospitals that plays the protocol step by step, so that a test can lose messages between the steps."""

    def __init__(self, members: int, *, threshold: int | None = None) -> None:
        self.maskers = {name: Masker(name, 1, least_members=2) for name in (f"h{n}" for n in range(members))}
        keys = tuple(masker.advertise() for masker in self.maskers.values())
        self.group = Group(keys, threshold or least_threshold(members))
        self.letters: dict[str, tuple[SealedShares, ...]] = {}

    def share(self, silent: frozenset[str] = frozenset()) -> None:
        self.letters = {name: m.share(self.group) for name, m in self.maskers.items() if name not in silent}

    def letters_to(self, name: str) -> list[SealedShares]:
        return [letter for letters in self.letters.values() for letter in letters if letter.recipient == name]

    def mask(self, values: dict[str, np.ndarray]) -> list[MaskedVector]:
        return [
            self.maskers[name].mask(vector, self.letters_to(name), fixed_point=FIXED_POINT)
            for name, vector in values.items()
        ]

    def reveal(self, masked: list[MaskedVector], answering: list[str]) -> list[RevealedShares]:
        arrived = tuple(vector.hospital_id for vector in masked)
        return [self.maskers[name].reveal(arrived) for name in answering]

    def unmask(self, masked: list[MaskedVector], revealed: list[RevealedShares]) -> np.ndarray:
        total = np.sum([vector.values for vector in masked], axis=0, dtype=np.uint64)
        arrived = [vector.hospital_id for vector in masked]
        unmask(total, self.group, sharing=list(self.letters), arrived=arrived, revealed=revealed)
        return total


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_sum_is_the_plain_sum_to_the_fixed_point_step_whoever_drops_out(data: st.DataObject) -> None:
    members = data.draw(st.integers(2, 9))
    length = data.draw(st.integers(1, 70))
    ward = Ward(members)
    names = data.draw(st.permutations(list(ward.maskers)))
    # A third may be lost, each at another step: before sharing, before masking, before revealing.
    lost = data.draw(st.lists(st.integers(0, 2), max_size=members - ward.group.threshold))
    stages = [frozenset(name for name, when in zip(names, lost, strict=False) if when <= stage) for stage in range(3)]
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** data.draw(st.integers(-8, 5))
    values = {
        name: (scale * draw.standard_normal(length)).astype(np.float32)
        for name in ward.maskers
        if name not in stages[1]
    }
    ward.share(silent=stages[0])
    masked = ward.mask(values)
    total = ward.unmask(masked, ward.reveal(masked, [name for name in values if name not in stages[2]]))

    in_the_ring = sum(FIXED_POINT.encode(vector, summands=members).astype(object) for vector in values.values())
    assert total.tolist() == [entry % 2**64 for entry in in_the_ring]
    step = Fraction(FIXED_POINT.step)
    for entry, found in enumerate(FIXED_POINT.decode(total)):
        plain = sum(Fraction(float(vector[entry])) for vector in values.values())
        rounding = len(values) * step / 2 + abs(plain) * Fraction(2.0**-52)
        assert abs(Fraction(float(found)) - plain) <= rounding


@given(st.integers(1, 50), st.lists(st.floats(-1, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_the_largest_numbers_that_are_taken_do_not_wrap_around(summands: int, parts: list[float]) -> None:
    largest = np.nextafter(FIXED_POINT.largest(summands), 0)
    values = largest * np.array(parts)
    encoded = FIXED_POINT.encode(values, summands=summands)
    total = np.zeros(len(parts), np.uint64)
    for _ in range(summands):
        total += encoded
    np.testing.assert_allclose(
        FIXED_POINT.decode(total), summands * values, rtol=1e-12, atol=summands * FIXED_POINT.step
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**30, -(2.0**29), 3e38])
def test_a_number_that_could_make_the_sum_wrap_around_is_refused(bad: float) -> None:
    with pytest.raises(RangeError, match="a sum of 4 takes entries below"):
        FIXED_POINT.encode(np.array([0.5, bad, 1.0]), summands=4)


def test_one_step_is_the_smallest_difference_that_a_sum_shows() -> None:
    step = FIXED_POINT.step
    np.testing.assert_array_equal(
        FIXED_POINT.decode(FIXED_POINT.encode(np.array([step, 0.4 * step, -step]), summands=2)), [step, 0.0, -step]
    )


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(1, n), st.permutations(range(1, n + 1)))),
)
@settings(deadline=None)
def test_any_threshold_of_the_shares_opens_the_secret(secret: bytes, how: tuple[int, list[int]]) -> None:
    threshold, points = how
    shares = split(secret, points, threshold=threshold)
    assert join(shares[:threshold], threshold=threshold) == secret
    assert join(reversed(shares), threshold=threshold) == secret


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
@settings(deadline=None)
def test_a_share_below_the_threshold_fits_every_secret(secret: bytes, other: bytes) -> None:
    known = split(secret, (1, 2), threshold=2)[0]
    guess = int.from_bytes(other, "big")
    fitting = Share(2, (2 * known.value - guess) % PRIME)  # the line through the guess at 0 and the known share at 1
    assert join((known, fitting), threshold=2) == other


def test_too_few_shares_say_so_and_so_do_shares_of_two_secrets() -> None:
    one, two = (split(bytes([number]) * 32, (1, 2, 3), threshold=3) for number in (1, 2))
    with pytest.raises(SharesError, match="3 shares open the secret, got 2"):
        join(one[:2], threshold=3)
    with pytest.raises(SharesError, match="3 shares open the secret, got 2"):
        join([one[0], one[0], one[1]], threshold=3)
    with pytest.raises(SharesError, match="do not belong to one secret"):
        join([one[0], one[1], two[2]], threshold=3)


def test_a_sum_that_lacks_a_share_stays_closed_and_says_which() -> None:
    ward = Ward(5)
    ward.share()
    masked = ward.mask({name: np.ones(3) for name in ("h0", "h1", "h2", "h3")})  # h4 drops out after sharing
    revealed = ward.reveal(masked, ["h0", "h1", "h2"])
    with pytest.raises(SharesError, match=r"stays closed: seed of h0: 4 shares open the secret, got 3"):
        ward.unmask(masked, revealed)


def test_a_masked_vector_looks_like_random_bytes_whatever_it_hides() -> None:
    seeds = np.random.default_rng(7)
    for hidden in (np.zeros(50_000), np.full(50_000, 1e6), np.linspace(-1, 1, 50_000)):
        masked = FIXED_POINT.encode(hidden, summands=3)
        for _ in range(3):  # the own mask, one to add and one to take away
            add_mask(masked, seeds.bytes(32))
        for place in range(8):
            counts = np.bincount(masked.view(np.uint8)[place::8], minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6
        assert abs(np.corrcoef(masked.astype(np.float64), np.arange(50_000))[0, 1]) < 0.02


def test_two_hospitals_with_the_same_update_send_vectors_that_share_nothing() -> None:
    ward = Ward(2)
    ward.share()
    one, two = ward.mask(dict.fromkeys(ward.maskers, np.zeros(10_000)))
    assert not (one.values == two.values).any()
    bits = np.unpackbits((one.values ^ two.values).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.01


def test_a_wrong_seed_takes_no_mask_off() -> None:
    ward = Ward(3)
    ward.share()
    masked = ward.mask(dict.fromkeys(ward.maskers, np.ones(4000)))
    revealed = ward.reveal(masked, list(ward.maskers))
    shares = split(bytes(32), (1, 2, 3), threshold=2)
    false = [
        RevealedShares(answer.hospital_id, {**answer.of_seeds, "h1": share}, answer.of_keys)
        for answer, share in zip(revealed, shares, strict=True)
    ]
    np.testing.assert_array_equal(FIXED_POINT.decode(ward.unmask(masked, revealed)), 3.0)
    garbage = ward.unmask(masked, false)
    assert stats.chisquare(np.bincount(garbage.view(np.uint8), minlength=256)).pvalue > 1e-9


def test_a_mask_is_the_same_whatever_block_it_is_made_in() -> None:
    long, short = np.zeros(100_000, np.uint64), np.zeros(40_000, np.uint64)
    add_mask(long, bytes(32))
    add_mask(short, bytes(32))
    np.testing.assert_array_equal(long[:40_000], short)
    add_mask(long, bytes(32), subtract=True)
    assert not long.any()


def test_only_its_recipient_opens_a_letter() -> None:
    ann, ben, eve = (X25519PrivateKey.generate() for _ in range(3))
    public = {key: key.public_key().public_bytes_raw() for key in (ann, ben, eve)}
    letter = seal(agree(ann, public[ben], purpose=b"a letter"), b"a share")
    assert unseal(agree(ben, public[ann], purpose=b"a letter"), letter) == b"a share"
    for other in (
        agree(eve, public[ann], purpose=b"a letter"),
        agree(ben, public[ann], purpose=b"another place"),
    ):
        with pytest.raises(SealError):
            unseal(other, letter)
    with pytest.raises(SealError):
        unseal(agree(ben, public[ann], purpose=b"a letter"), letter[:-1] + bytes([letter[-1] ^ 1]))


def test_a_key_that_would_make_the_secret_known_to_all_is_refused() -> None:
    with pytest.raises(ValueError, match="shared key"):
        agree(X25519PrivateKey.generate(), bytes(32), purpose=b"mask")


def test_no_hospital_ever_gives_both_secrets_of_another() -> None:
    ward = Ward(6)
    ward.share()
    masked = ward.mask({name: np.ones(3) for name in ("h0", "h1", "h2", "h3", "h5")})
    for answer in ward.reveal(masked, ["h0", "h1", "h2", "h3"]):
        assert set(answer.of_seeds) == {"h0", "h1", "h2", "h3", "h5"}
        assert set(answer.of_keys) == {"h4"}


def test_a_sum_opens_once_and_not_for_fewer_than_the_threshold() -> None:
    ward = Ward(4)
    ward.share()
    masked = ward.mask(dict.fromkeys(ward.maskers, np.ones(2)))
    with pytest.raises(ProtocolError, match="3 members or more, got 2"):
        ward.maskers["h0"].reveal(("h0", "h1"))
    with pytest.raises(ProtocolError, match="of this group"):
        ward.maskers["h0"].reveal(("h0", "h1", "h2", "somebody"))
    ward.reveal(masked, ["h0"])
    with pytest.raises(ProtocolError, match="already"):
        ward.maskers["h0"].reveal(("h0", "h1", "h2"))


def test_a_hospital_masks_once_in_a_round() -> None:
    ward = Ward(3)
    ward.share()
    ward.mask({"h0": np.ones(2)})
    with pytest.raises(ProtocolError, match="masked already"):
        ward.mask({"h0": np.zeros(2)})


def test_a_hospital_takes_no_part_in_a_group_that_protects_too_little() -> None:
    masker = Masker("h0", 1, least_members=3)
    own = masker.advertise()
    others = [Masker(f"h{n}", 1, least_members=3).advertise() for n in (1, 2, 3, 4)]
    with pytest.raises(ProtocolError, match="at least 3"):
        masker.share(Group((own, others[0]), 2))
    with pytest.raises(ProtocolError, match="at least 3"):
        masker.share(Group((own, others[0], others[0]), 2))
    with pytest.raises(ProtocolError, match="opens for 4 of them or more, got 2"):
        masker.share(Group((own, *others), 2))
    with pytest.raises(ProtocolError, match="not of its keys"):
        masker.share(Group(tuple(others), 3))
    with pytest.raises(ProtocolError, match="in no group"):
        masker.mask(np.ones(2), [], fixed_point=FIXED_POINT)


@pytest.mark.parametrize(("members", "lost"), [(2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (9, 3), (10, 3), (100, 33)])
def test_a_third_may_drop_out_and_never_all_but_one(members: int, lost: int) -> None:
    assert members - least_threshold(members) == lost
    assert least_threshold(members) > members / 2 or members == 2
    assert least_threshold(members) >= 2


def test_a_number_of_fraction_bits_leaves_room_before_and_behind_the_point() -> None:
    for wrong in (-1, 0, 62, 64):
        with pytest.raises(ValueError, match=f"0 < fraction_bits < 62, got {wrong}"):
            FixedPoint(wrong)
    for bits in (1, 16, 61):
        point = FixedPoint(bits)
        assert point.step == 2.0**-bits
        assert point.largest(3) == pytest.approx(2.0 ** (62 - bits) / 3)
        values = np.array([0.5, -0.5, 0.0]) * point.largest(1)
        assert point.encode(values, summands=1).tolist() == [2**61, 2**64 - 2**61, 0]


def test_a_number_just_below_the_largest_is_taken_and_the_largest_is_not() -> None:
    largest = FIXED_POINT.largest(4)
    below = float(np.nextafter(largest, 0))
    FIXED_POINT.encode(np.array([below, -below]), summands=4)
    for bad in (largest, -largest):
        with pytest.raises(RangeError, match="and 1 more of 3"):
            FIXED_POINT.encode(np.array([bad, 0.0, np.nan]), summands=4)


@pytest.mark.parametrize(
    ("points", "threshold"),
    [((0, 1, 2), 2), ((1, 2, PRIME), 2), ((1, 2, 2), 2), ((1, 2), 3), ((1, 2), 0), ((-1, 2), 1)],
)
def test_a_secret_is_not_shared_at_points_that_would_give_it_away(points: tuple[int, ...], threshold: int) -> None:
    with pytest.raises(ValueError, match="1 <= threshold <= different points"):
        split(bytes(32), points, threshold=threshold)


def test_a_secret_is_of_32_bytes_and_may_be_shared_at_the_last_point() -> None:
    for length in (0, 31, 33):
        with pytest.raises(ValueError, match=f"a secret has 32 bytes, got {length}"):
            split(bytes(length), (1, 2), threshold=2)
    secret = bytes(range(32))
    assert join(split(secret, (1, PRIME - 1), threshold=2), threshold=2) == secret


def test_what_is_too_large_for_a_secret_is_none_and_the_largest_secret_is_one() -> None:
    assert join([Share(1, 2**256 - 1)], threshold=1) == b"\xff" * 32
    with pytest.raises(SharesError, match="do not belong to one secret"):
        join([Share(1, 2**256)], threshold=1)


def test_fewer_shares_than_the_threshold_never_give_the_secret_itself() -> None:
    secret = bytes(31) + b"\x07"
    for threshold in (2, 3, 5):
        shares = split(secret, range(1, 6), threshold=threshold)
        assert all(share.value != 7 for share in shares)
        assert len({share.value for share in shares}) == 5
        with pytest.raises(SharesError, match=f"{threshold} shares open the secret, got {threshold - 1}"):
            join(shares[: threshold - 1], threshold=threshold)


def test_a_sum_opens_where_one_answer_lacks_a_share_and_enough_others_have_it() -> None:
    ward = Ward(5)
    ward.share()
    masked = ward.mask({name: np.full(3, 2.0) for name in ward.maskers})
    revealed = ward.reveal(masked, list(ward.maskers))
    short = {name: share for name, share in revealed[0].of_seeds.items() if name != "h3"}
    revealed[0] = RevealedShares("h0", short, {})
    assert FIXED_POINT.decode(ward.unmask(masked, revealed)).tolist() == [10.0] * 3
    with pytest.raises(SharesError, match=r"the sum of h0, h1, h2, h3, h4 stays closed: seed of h3: 4 shares"):
        ward.unmask(masked, revealed[:4])


def test_a_hospital_is_in_one_group_of_its_own_round_and_of_a_threshold_that_can_be_met() -> None:
    def member(name: str, number: int = 1) -> Masker:
        return Masker(name, number, least_members=3)

    own, others = member("h0"), [member(f"h{n}").advertise() for n in (1, 2)]
    with pytest.raises(ProtocolError, match="not of its keys and round"):
        own.share(Group((own.advertise(), others[0], member("h2", 2).advertise()), 2))
    for threshold in (1, 4):
        with pytest.raises(ProtocolError, match=f"a sum of 3 opens for 2 of them or more, got {threshold}"):
            own.share(Group((own.advertise(), *others), threshold))
    assert [letter.recipient for letter in own.share(Group((own.advertise(), *others), 2))] == ["h1", "h2"]
    with pytest.raises(ProtocolError, match="in a group already in round 1"):
        own.share(Group((own.advertise(), *others), 2))
    unanimous = member("h9")
    assert len(unanimous.share(Group((unanimous.advertise(), *others), 3))) == 2


def test_a_hospital_masks_for_the_threshold_and_for_no_fewer() -> None:
    for arriving, enough in ((2, False), (3, True)):  # with the own share one more; four of five are needed
        ward = Ward(5)
        ward.share()
        letters = ward.letters_to("h0")[:arriving]
        if enough:
            assert ward.maskers["h0"].mask(np.ones(2), letters, fixed_point=FIXED_POINT).hospital_id == "h0"
        else:
            with pytest.raises(ProtocolError, match="4 of 5 members are needed, got 3"):
                ward.maskers["h0"].mask(np.ones(2), letters, fixed_point=FIXED_POINT)


def test_a_letter_from_outside_or_from_oneself_is_refused() -> None:
    ward = Ward(4)
    ward.share()
    (letter, *_) = ward.letters_to("h0")
    for sender in ("h0", "somebody"):
        with pytest.raises(ProtocolError, match=f"a letter from '{sender}', who is in another group"):
            ward.maskers["h0"].mask(np.ones(2), [replace(letter, sender=sender)], fixed_point=FIXED_POINT)
        ward = Ward(4)
        ward.share()
    with pytest.raises(SealError):
        ward.maskers["h0"].mask(np.ones(2), [replace(letter, sender="h2")], fixed_point=FIXED_POINT)


def test_a_mask_is_the_key_stream_of_aes_in_counter_mode() -> None:
    # NIST SP 800-38A, 6.5: the blocks of the counter, here 0 and 1, each encrypted by itself.
    total = np.array([0, 1, 2**64 - 1, 0], np.uint64)
    add_mask(total, bytes(32))
    cipher = Cipher(AES256(bytes(32)), ECB()).encryptor()
    blocks = cipher.update(bytes(16)) + cipher.update(bytes(15) + b"\x01")
    stream = [int.from_bytes(blocks[at : at + 8], "little") for at in range(0, 32, 8)]
    start = [0, 1, 2**64 - 1, 0]
    assert total.tolist() == [(a + b) % 2**64 for a, b in zip(start, stream, strict=True)]
