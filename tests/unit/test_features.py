"""Features from arrays and files, their ids, and row digests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from catwise.errors import ConfigError, FeatureError, FeatureStoreError, IdError, ShapeError
from catwise.features import (
    Features,
    as_ids,
    block_of,
    check_finite,
    iterate_blocks,
    read_features,
    row_digests,
    write_store,
)

VALUES = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
IDS = [f"img_{i}.jpg" for i in range(7)]


def write(path: Path, values: Any = VALUES, **others: Any) -> Path:
    """Write an array in the format that the suffix says."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, features=values, **others)
    else:
        safetensors.numpy.save_file({"features": values, **others}, path)
    return path


files = pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])


@files
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_files_give_what_was_written(tmp_path: Path, suffix: str, dtype: Any) -> None:
    """Every format and dtype comes back bit for bit, mapped from the file."""
    values = (VALUES * 100).astype(dtype)
    features = read_features(write(tmp_path / f"a{suffix}", values))
    assert features.shape == (7, 3)
    assert features.ids is None
    assert isinstance(features.values, np.memmap)
    assert features.block(0, 7).dtype == dtype
    np.testing.assert_array_equal(features.block(2, 5), values[2:5])
    np.testing.assert_array_equal(features.rows([6, 0, 6]), values[[6, 0, 6]])
    assert not features.values.flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order(tmp_path: Path, order: Any) -> None:
    """Column-major arrays are read rightly."""
    path = write(tmp_path / "a.npy", np.asarray(VALUES, order=order))
    np.testing.assert_array_equal(read_features(path).block(0, 7), VALUES)


def test_big_endian(tmp_path: Path) -> None:
    """Numbers of the other byte order have the same values."""
    features = read_features(write(tmp_path / "a.npy", VALUES.astype(">f2")))
    expected = torch.from_numpy(VALUES.astype(np.float16)).float()
    torch.testing.assert_close(block_of(features, 0, 7), expected, rtol=0, atol=0)


def test_compressed(tmp_path: Path) -> None:
    """A compressed .npz is read into memory."""
    np.savez_compressed(tmp_path / "a.npz", features=VALUES, ids=IDS)
    features = read_features(tmp_path / "a.npz")
    np.testing.assert_array_equal(features.block(0, 7), VALUES)
    assert features.ids is not None
    assert features.ids.tolist() == IDS


def test_bfloat16_file(tmp_path: Path) -> None:
    """A bfloat16 tensor of a safetensors file is given as float32, exactly."""
    values = torch.from_numpy(VALUES).to(torch.bfloat16)
    safetensors.torch.save_file({"z": values}, tmp_path / "a.safetensors")
    features = read_features(tmp_path / "a.safetensors")
    torch.testing.assert_close(block_of(features, 1, 6), values[1:6].float(), rtol=0, atol=0)
    np.testing.assert_array_equal(features.rows([3]), values[3:4].float().numpy())


def test_store_folder(tmp_path: Path) -> None:
    """The folder of a feature store is read with its ids."""
    write_store(tmp_path / "s", VALUES, ids=IDS)
    features = read_features(tmp_path / "s")
    np.testing.assert_array_equal(features.block(0, 7), VALUES)
    assert features.ids is not None
    assert features.ids.tolist() == IDS
    with pytest.raises(ConfigError, match="no keys"):
        read_features(tmp_path / "s", key="features")


@pytest.mark.parametrize("source", [VALUES, torch.from_numpy(VALUES), VALUES.tolist()])
def test_arrays_in_memory(source: Any) -> None:
    """Arrays, tensors and lists are taken as they are; row access works on each."""
    features = read_features(source)
    assert features.shape == (7, 3)
    np.testing.assert_allclose(np.asarray(features.block(1, 3)), VALUES[1:3])
    np.testing.assert_allclose(np.asarray(features.rows([4, 1])), VALUES[[4, 1]])
    assert read_features(features) is features


def test_keys(tmp_path: Path) -> None:
    """An array is named, or found when only one may be meant; otherwise the choices are shown."""
    path = tmp_path / "a.npz"
    np.savez(path, z_train=VALUES, z_test=VALUES[:2], names=IDS, y=np.zeros(7, dtype=np.int8))
    assert read_features(path, key="z_test").shape == (2, 3)
    features = read_features(path, key="z_train", ids_key="names")
    assert features.ids is not None
    assert features.ids.tolist() == IDS
    with pytest.raises(FeatureStoreError, match=r"'z_train'.*'z_test'"):
        read_features(path)
    with pytest.raises(FeatureStoreError, match="did you mean 'z_train'"):
        read_features(path, key="z_trian")
    with pytest.raises(FeatureStoreError, match="no array 'x'"):
        read_features(path, key="z_test", ids_key="x")
    np.savez(path, z=VALUES, y=np.zeros((7, 2), dtype=np.int8))
    assert read_features(path).shape == (7, 3)
    with pytest.raises(ConfigError, match="arrays of a file"):
        read_features(VALUES, key="z")


def test_ids_beside_features(tmp_path: Path) -> None:
    """An array called ids is taken; numbers become texts; float or pickled ids are refused."""
    read = read_features(write(tmp_path / "a.safetensors", ids=np.arange(7)))
    assert read.ids is not None
    assert read.ids.tolist() == [str(i) for i in range(7)]
    with pytest.raises(FeatureStoreError, match="neither texts nor whole numbers"):
        read_features(write(tmp_path / "b.npz", ids=np.array(IDS, dtype=object)))
    with pytest.raises(ShapeError, match=r"shape \(6,\)"):
        read_features(write(tmp_path / "c.npz", ids=IDS[:6]))
    with pytest.raises(IdError, match=r"'img_0\.jpg' in rows 0 and 6"):
        read_features(write(tmp_path / "d.npz", ids=[*IDS[:6], IDS[0]]))


@files
def test_cut_short(tmp_path: Path, suffix: str) -> None:
    """A file cut anywhere is one clear error."""
    path = write(tmp_path / f"a{suffix}")
    raw = path.read_bytes()
    for size in (0, 1, 8, 9, 40, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(FeatureStoreError, match="cannot read features"):
            read_features(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"id,f0,f1\n", "not a .npy, .npz or .safetensors"),
        (b"PK\x03\x04" + bytes(30), "damaged or cut short"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    """Empty files and files of another kind say so."""
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(FeatureStoreError, match=reason):
        read_features(path)


def test_longer_than_its_header(tmp_path: Path) -> None:
    """Bytes behind an array's end are refused: two files ran together."""
    path = write(tmp_path / "a.npy")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FeatureStoreError, match="longer than its header"):
        read_features(path)


def test_missing_file(tmp_path: Path) -> None:
    """A path that is not there is named with the reason."""
    with pytest.raises(FeatureStoreError, match="No such file"):
        read_features(tmp_path / "a.npy")


def test_folder_that_is_no_store(tmp_path: Path) -> None:
    """A folder without a manifest is no store."""
    with pytest.raises(FeatureStoreError, match=r"no manifest\.json"):
        read_features(tmp_path)


def test_damaged_member(tmp_path: Path) -> None:
    """A compressed array whose checksum is wrong is refused."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, features=VALUES)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        raw[archive.infolist()[0].compress_size + 20] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(FeatureStoreError, match=r"damaged|Error"):
        read_features(path)


def test_pickled_array_is_not_executed(tmp_path: Path) -> None:
    """An array of objects, which is a pickle, is refused before a byte of it is used."""
    objects = np.array([[Path]], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", objects)
    np.savez_compressed(tmp_path / "b.npz", objects)
    for name in ("a.npy", "a.npz", "b.npz"):
        with pytest.raises(FeatureStoreError, match="neither numbers nor texts"):
            read_features(tmp_path / name)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_rows(tmp_path: Path, shape: tuple[int, int]) -> None:
    """A file without rows or columns holds no features."""
    with pytest.raises(FeatureStoreError, match="holds no features"):
        read_features(write(tmp_path / "a.npy", np.zeros(shape)))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2, 2)])
def test_wrong_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Features have two axes, or three with a vector for each category."""
    with pytest.raises(FeatureError, match=r"shape \(N, D\)"):
        read_features(write(tmp_path / "a.npy", np.zeros(shape)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "memmap"])
def test_not_finite(tmp_path: Path, bad: float, dtype: str) -> None:
    """NaN and infinity are refused with row, id, column and number of rows, in any block."""
    values = VALUES.copy()
    values[5, 2] = bad
    values[6, :] = bad
    source: Any = values
    if dtype == "bfloat16":
        source = torch.from_numpy(values).to(torch.bfloat16)
    elif dtype == "memmap":
        source = np.load(write(tmp_path / "a.npy", values), mmap_mode="r")
    else:
        source = values.astype(dtype)
    features = Features(source, IDS)
    for block_rows in (1, 4, 100):
        with pytest.raises(FeatureError, match=r"2 rows .* row 5 \('img_5\.jpg'\), column 2"):
            check_finite(features, block_rows=block_rows)
    with pytest.raises(FeatureError, match="the first is row 5, column 2"):
        read_features(source)
    assert read_features(source, check=False).shape == (7, 3)


def test_too_large_for_float32() -> None:
    """A float64 number that float32 cannot hold counts as infinite."""
    with pytest.raises(FeatureError, match=r"row 1, column 0 \(1e\+300\)"):
        check_finite(np.array([[1.0], [1e300]]))
    with pytest.raises(FeatureError, match="row 1, column 0"):
        check_finite(torch.tensor([[1.0], [1e300]], dtype=torch.float64))


@pytest.mark.parametrize("values", [np.ones((2, 2), dtype=bool), np.ones((2, 2), dtype=complex)])
def test_not_numbers(values: Any) -> None:
    """Truth values and complex numbers are no features."""
    with pytest.raises(FeatureError, match="real numbers"):
        read_features(values)


def test_features_are_frozen() -> None:
    """Neither attributes nor ids can be changed, and the caller's ids are not touched."""
    ids = np.array(IDS)
    features = Features(VALUES, ids)
    with pytest.raises(AttributeError):
        features.ids = None  # type: ignore[misc]
    assert features.ids is not None
    with pytest.raises(ValueError, match="read-only"):
        features.ids[0] = "x"
    ids[0] = "y"
    assert features.ids[0] == IDS[0]
    assert len(features) == 7


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (["a", ""], "is empty"),
        (["a", "b\nc"], "line break"),
        (["a", 1.5], "texts or whole numbers"),
        (["a", None], "texts or whole numbers"),
        ([b"a", b"\xff"], "texts or whole numbers"),
        ([True, False], "texts or whole numbers"),
        (["a", "\ud800"], "not Unicode"),
        (["a", "a"], "more than once"),
    ],
)
def test_bad_ids(ids: list[Any], reason: str) -> None:
    """Each kind of unusable id has its own message."""
    with pytest.raises(IdError, match=reason):
        as_ids(np.array(ids, dtype=object))


def test_a_character_beyond_unicode(tmp_path: Path) -> None:
    """A file can hold numbers that are no character, of which Python cannot make a text."""
    ids = np.array([97, 0x110000], dtype=np.uint32).view("U1")
    np.savez(tmp_path / "a.npz", features=np.full((2, 1), np.nan), ids=ids)
    with pytest.raises(IdError, match="not Unicode") as caught:
        read_features(tmp_path / "a.npz")
    assert "row 1: '\ufffd'" in str(caught.value)


def test_a_member_without_a_name(tmp_path: Path) -> None:
    """What an archive holds beside its arrays does not matter, whatever it is called."""
    np.savez(tmp_path / "a.npz", features=VALUES)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("x", b"")
        archive.infolist()[-1].filename = ""
    assert len(read_features(tmp_path / "a.npz")) == len(VALUES)


def test_many_duplicates_show_three() -> None:
    """Of many repeated ids three are shown."""
    with pytest.raises(IdError, match=r"(?s)hold 5 more than once.*and 2 more") as caught:
        as_ids([str(i % 5) for i in range(10)])
    assert str(caught.value).count("in rows") == 3


# Row digests


@pytest.mark.parametrize("block_rows", [1, 3, 4096])
def test_digests_do_not_depend_on_the_cut(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    """Block size, chunk size and container change no digest."""
    expected = row_digests(VALUES)
    monkeypatch.setattr("catwise.features.digests._CHUNK_BYTES", block_rows)
    features = Features(torch.from_numpy(VALUES))
    np.testing.assert_array_equal(row_digests(features), expected)
    np.testing.assert_array_equal(row_digests(VALUES[::-1]), expected[::-1])
    assert expected.dtype == np.uint64
    assert len(set(expected.tolist())) == 7


def test_digests_are_of_values() -> None:
    """Equal numbers give equal digests in any dtype; −0 counts as 0; one bit changes them."""
    half = VALUES.astype(np.float16)
    np.testing.assert_array_equal(row_digests(half), row_digests(half.astype(np.float64)))
    np.testing.assert_array_equal(row_digests([[0.0, 1.0]]), row_digests([[-0.0, 1.0]]))
    other = VALUES.copy()
    other[2, 1] = np.nextafter(other[2, 1], np.float32(9))
    assert (row_digests(other) != row_digests(VALUES)).tolist() == [i == 2 for i in range(7)]
    assert row_digests([[0.0]]) != row_digests([[0.0, 0.0]])


CONTENT = [12396562548339709936, 8403236916350912639]
NAMED = [3746361391813139894, 9407870976149377255]


def test_digests_are_stable() -> None:
    """Digests are part of saved heads: these values must never change."""
    assert row_digests([[0.0, 1.0], [-2.5, 3.0]]).tolist() == CONTENT
    assert row_digests(np.zeros((2, 1)), ids=["Zürich/1.jpg", "7"]).tolist() == NAMED


def test_digests_are_multilinear_hashes() -> None:
    """The digests are those of the published formula, in whole numbers of Python."""
    bits = 2**64 - 1
    keys = []
    for i in range(1, 7):  # SplitMix64, at a start that depends on D = 2
        z = (i + (2 << 32)) * 0x9E3779B97F4A7C15 & bits
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & bits
        z = (z ^ z >> 27) * 0x94D049BB133111EB & bits
        keys.append(z ^ z >> 31)
    row = np.array([1.5, -2.0], dtype=np.float32)
    words = row.view(np.uint32).tolist()
    upper, lower = (
        (first + sum(key * word for key, word in zip(others, words, strict=True)) & bits) >> 32
        for first, *others in (keys[:3], keys[3:])
    )
    assert row_digests(row[None]).tolist() == [upper << 32 | lower]


def test_digests_do_not_collide() -> None:
    """200,000 rows that differ little have different digests, in both halves as chance allows."""
    n = 200_000
    rows = np.zeros((n, 2), dtype=np.float32)
    rows[:, 0] = np.arange(n) % 500
    rows[:, 1] = np.arange(n) // 500
    digests = row_digests(rows)
    assert len(np.unique(digests)) == n
    for half in (digests >> np.uint64(32), digests & np.uint64(0xFFFFFFFF)):
        assert n - len(np.unique(half)) < 30  # expected: n² / 2³³ = 4.7


def test_digests_of_ids() -> None:
    """Ids are digested where there are any, given or the features' own; the values are not read."""
    features = Features(VALUES, IDS)
    by_id = row_digests(features)
    np.testing.assert_array_equal(by_id, row_digests(np.full((7, 9), np.nan), ids=IDS))
    assert not set(by_id.tolist()) & set(row_digests(VALUES).tolist())
    np.testing.assert_array_equal(
        row_digests(np.zeros((2, 1)), ids=[3, 4]), row_digests(np.zeros((2, 1)), ids=["3", "4"])
    )
    with pytest.raises(ShapeError, match="do not fit"):
        row_digests(VALUES, ids=IDS[:3])


def test_blocks_of_features() -> None:
    """Features serve wherever rows are read in blocks."""
    parts = [rows for _, rows in iterate_blocks(Features(VALUES), block_rows=3)]
    torch.testing.assert_close(torch.cat(parts), torch.from_numpy(VALUES))
    assert [len(part) for part in parts] == [3, 3, 1]


def test_open_file_is_no_source() -> None:
    """A stream is neither a path nor features."""
    with pytest.raises(FeatureError):
        read_features(io.BytesIO(b"x"))
