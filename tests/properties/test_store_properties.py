"""Properties of feature stores and row digests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.features import iterate_blocks, row_digests, write_store

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
values = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 4)),
    elements=st.floats(-60000, 60000, width=32, allow_subnormal=True),
)
ids = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(
    values=values,
    dtype=st.sampled_from(sorted(DTYPES)),
    shard_bytes=st.integers(1, 100),
    cut=st.integers(1, 5),
    data=st.data(),
)
def test_store_round_trip(
    values: np.ndarray, dtype: str, shard_bytes: int, cut: int, data: st.DataObject
) -> None:
    """What goes in comes out, bit for bit, however it is cut into blocks and shards."""
    exact = torch.from_numpy(values).to(DTYPES[dtype])
    n = len(values)
    names = data.draw(st.lists(ids, min_size=n, max_size=n, unique=True))
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("catwise.features.writer.SHARD_BYTES", shard_bytes),
    ):
        blocks = (exact[i : i + cut] for i in range(0, n, cut))
        store = write_store(Path(folder, "s"), blocks, ids=names)
        wide = exact.float().numpy()
        assert store.dtype == dtype
        start, stop = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
        assert store.block(start, stop).tobytes() == store.rows(range(start, stop)).tobytes()
        read = torch.cat([rows for _, rows in iterate_blocks(store, block_rows=cut)])
        assert read.numpy().tobytes() == wide.tobytes()
        assert store.ids is not None
        assert store.ids.tolist() == names
        store.verify()


@settings(max_examples=60, deadline=None)
@given(values=values, data=st.data())
def test_digests_follow_their_rows(values: np.ndarray, data: st.DataObject) -> None:
    """Digests move with the rows, and are equal exactly where the rows are."""
    order = data.draw(st.permutations(range(len(values))))
    digests = row_digests(values)
    np.testing.assert_array_equal(row_digests(values[order]), digests[order])
    same_rows = (values[:, None] == values[None]).all(2)
    np.testing.assert_array_equal(digests[:, None] == digests[None], same_rows)
