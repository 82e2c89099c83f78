"""How a step is divided: nobody is left out, and nothing is larger than it may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.micro import divide, positions

LENGTHS = st.lists(st.integers(1, 300), min_size=4, max_size=40).map(lambda rows: rows[: len(rows) // 4 * 4])


@given(LENGTHS, st.integers(1, 1000), st.sampled_from([1, 2, 4]), st.booleans())
def test_every_row_is_in_one_micro_batch_that_fits(
    lengths: list[int], tokens: int, processes: int, packed: bool
) -> None:
    shares = divide(lengths, tokens, processes, packed=packed)
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert len(shares) == processes and len({len(share) for share in shares}) == 1
    assert {sum(map(len, share)) for share in shares} == {len(lengths) // processes}
    for batch in (batch for share in shares for batch in share):
        assert len(batch) == 1 or positions(batch, lengths, packed=packed) <= tokens
    assert shares == divide(lengths, tokens, processes, packed=packed)


def test_little_is_padding() -> None:
    lengths = [40, 700, 45, 350, 120, 60, 250, 90]
    (share,) = divide(lengths, 512)
    assert sum(positions(batch, lengths) for batch in share) < 1.25 * sum(lengths)
    (packed,) = divide(lengths, 512, packed=True)
    assert sum(positions(batch, lengths, packed=True) for batch in packed) == sum(lengths)


def test_rows_that_cannot_be_shared_are_an_error() -> None:
    with pytest.raises(ValueError, match="7 rows cannot be shared evenly by 2 processes"):
        divide([5] * 7, 100, 2)
