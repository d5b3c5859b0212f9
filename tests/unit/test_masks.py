"""Mask files: round trips, pinned checksums, nested series, and everything that does not fit."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from catwise._safetensors import build
from catwise.data.masks import apply_mask, read_mask, save_mask
from catwise.errors import (
    CategoryError,
    ConfigError,
    IdError,
    LabelError,
    OutputError,
    ShapeError,
)
from catwise.labels import PartialLabels, drop_uniform, keep_per_category, keep_single_positive

PROTOCOL = {"name": "drop_uniform", "keep": 0.5, "seed": 0}
#: Protocol → the SHA-256 of its mask file for `small()`. A change here breaks published masks.
PINNED = {
    "drop_uniform": "4ad6ad2863804e3715982eb47926b0d8fc4f82722b3fbe2e5f6192b9c43dd1b8",
    "keep_per_category": "fbcfa5cf6eab071eb7034165feb7008c0ed161cbdc8fa667ea9adf4e0ceb2f7b",
    "keep_single_positive": "2ae5a3c754c055e9944b4bee737528737b4f351399fbef021c01d7af4e875cc7",
}


def small() -> PartialLabels:
    """Twenty images and three categories: written down, no draw."""
    codes = [[3 * i % 5 % 2, i * i % 3 % 2, i % 4 // 2] for i in range(20)]
    ids = [f"image-{i}" for i in range(20)]
    return PartialLabels(codes, ids=ids, categories=["cat", "dog", "eel"])


def sparse(rows: int = 4000, categories: int = 300) -> PartialLabels:
    """So few labels that columns are the smaller layout."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.choice(rows, size=6, replace=False), rng.integers(0, 2, 6)) for _ in range(categories)
    ]
    return PartialLabels.from_columns(pairs, rows, ids=[f"i{i}" for i in range(rows)])


def saved(folder, full=None, name="mask.safetensors"):
    """A mask file of half of the labels, and these."""
    full = small() if full is None else full
    kept = drop_uniform(full, 0.5, seed=0)
    save_mask(folder / name, full, kept, protocol=PROTOCOL)
    return folder / name, full, kept


@pytest.mark.parametrize("name", PINNED)
def test_the_same_seed_gives_the_same_file(tmp_path, name):
    """Protocols, layout and checksum are pinned; the storage of labels changes no byte."""
    full = small()
    keep = {"drop_uniform": drop_uniform, "keep_per_category": keep_per_category}.get(name)
    protocol = {"name": name, "seed": 7}
    if keep is None:
        kept = keep_single_positive(full, seed=7)
    else:
        protocol["keep"] = 0.5 if name == "drop_uniform" else 4
        kept = keep(full, protocol["keep"], seed=7)
    sha = save_mask(tmp_path / "a", full, kept, protocol=protocol)
    assert sha == PINNED[name]
    columns = full.with_storage("columns"), kept.with_storage("columns")
    reordered = dict(reversed(protocol.items()))
    assert save_mask(tmp_path / "b", *columns, protocol=reordered) == sha
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("make", [small, sparse])
@pytest.mark.parametrize("storage", ["dense", "columns"])
def test_round_trip(tmp_path, make, storage):
    """What is kept comes back equal, in the storage of the labels it is applied to."""
    path, full, kept = saved(tmp_path, make().with_storage(storage))
    assert apply_mask(path, full) == kept
    assert apply_mask(path, full).storage == storage
    mask = read_mask(path)
    assert (mask.bits is None) == (make is sparse)
    assert (mask.rows is None) == (make is small)
    assert mask.protocol == PROTOCOL
    assert mask.categories == full.categories
    assert (mask.n_rows, mask.n_full) == (full.n_rows, int(full.counts().known.sum()))
    assert mask.n_kept == int(kept.counts().known.sum())
    assert mask.share == mask.n_kept / mask.n_full
    assert "drop_uniform" in repr(mask)
    assert mask.sha256 in path.read_bytes().decode("latin-1")


def test_the_checksum_is_that_of_the_file_without_it(tmp_path):
    """Anyone can check it: SHA-256 of the same safetensors file without the entry "sha256"."""
    path, full, kept = saved(tmp_path)
    sha = save_mask(path, full, kept, protocol=PROTOCOL)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header["__metadata__"].pop("sha256") == sha
    bare = build({"bits": ("U8", (20, 1), raw[8 + length :])}, header["__metadata__"])
    assert hashlib.sha256(bare).hexdigest() == sha


@pytest.mark.parametrize("make", [small, sparse])
def test_the_series_is_nested(tmp_path, make):
    """What stays at 10% stays at 20%, … 90%, read back from the files; shares grow."""
    full, before, shares = make(), set(), []
    for tenth in range(1, 10):
        path = tmp_path / f"{tenth}0.safetensors"
        kept = drop_uniform(full, tenth / 10, seed=3)
        save_mask(path, full, kept, protocol={**PROTOCOL, "keep": tenth / 10, "seed": 3})
        found = apply_mask(path, full)
        now = {(j, r) for j in range(full.n_categories) for r in found.entries(j)[0].tolist()}
        assert before <= now
        before = now
        shares.append(read_mask(path).share)
    assert shares == sorted(shares)
    if make is sparse:
        np.testing.assert_allclose(shares, np.arange(1, 10) / 10, atol=0.04)


def test_uncertain_labels_and_labels_without_ids(tmp_path):
    """Uncertain labels stay as such; rows without ids are known by position."""
    full = PartialLabels([[1, -2], [-2, 0], [-1, 1]])
    kept = PartialLabels([[1, -2], [-1, -1], [-1, 1]])
    save_mask(tmp_path / "m", full, kept, protocol=PROTOCOL)
    assert apply_mask(tmp_path / "m", full) == kept
    assert read_mask(tmp_path / "m").ids_sha256 is None
    assert read_mask(tmp_path / "m").n_full == 5


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (4, 8), (4, 9)])
def test_edges(tmp_path, shape):
    """No rows, no categories, whole and broken bytes."""
    full = PartialLabels(np.ones(shape, dtype=np.int8))
    save_mask(tmp_path / "m", full, full, protocol=PROTOCOL)
    assert apply_mask(tmp_path / "m", full) == full


@given(data=st.data())
def test_any_choice_comes_back(tmp_path_factory, data):
    """Any labels, any of them kept, in any storage."""
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 20)))
    codes = data.draw(arrays.arrays(np.int8, shape, elements=st.sampled_from([-2, -1, 0, 1])))
    stays = data.draw(arrays.arrays(np.bool_, shape))
    storage = data.draw(st.sampled_from(["dense", "columns"]))
    full = PartialLabels(codes, ids=range(len(codes)), storage=storage)
    kept = PartialLabels(np.where(stays, codes, -1), ids=range(len(codes)), storage=storage)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_mask(path, full, kept, protocol=PROTOCOL)
    assert apply_mask(path, full) == kept


def test_labels_that_do_not_fit_are_refused(tmp_path):
    """Other rows, categories or ids, or another order of them: each says what differs."""
    path, full, _ = saved(tmp_path)
    with pytest.raises(ShapeError, match="19 rows"):
        apply_mask(path, full.take_rows(slice(19)))
    with pytest.raises(CategoryError, match="'dog' instead of 'cat' at position 0") as category:
        apply_mask(path, full.take_categories(["dog", "cat", "eel"]))
    assert "take_categories" in str(category.value.remedy)
    with pytest.raises(CategoryError, match="2 instead of 3") as category:
        apply_mask(path, full.take_categories(["cat", "dog"]))
    assert category.value.remedy is None
    with pytest.raises(IdError, match="the same ids in another order"):
        apply_mask(path, full.take_rows(slice(None, None, -1)))
    other = PartialLabels(full.codes, ids=range(20), categories=full.categories)
    with pytest.raises(IdError, match="other ids, such as '0'"):
        apply_mask(path, other)
    with pytest.raises(IdError, match="labels without ids"):
        apply_mask(path, PartialLabels(full.codes, categories=full.categories))
    nameless = PartialLabels(full.codes, categories=full.categories)
    path = saved(tmp_path, nameless)[0]
    with pytest.raises(IdError, match="a mask without"):
        apply_mask(path, full)
    assert str(path) in str(category.value)


def test_other_labels_are_refused_unless_allowed(tmp_path):
    """Corrected or missing labels are told; same_labels=False keeps the places."""
    path, full, kept = saved(tmp_path)
    rows, _ = kept.entries("cat")
    turned, blank = full.codes.copy(), full.codes.copy()
    turned[rows[0], 0] = 1 - turned[rows[0], 0]
    blank[rows[:2], 0] = -1
    for codes, message in ((turned, "same places with other labels"), (blank, "2 of its")):
        labels = PartialLabels(codes, ids=full.ids, categories=full.categories)
        with pytest.raises(LabelError, match=message):
            apply_mask(path, labels)
        stays = (kept.codes != -1) & (codes != -1)
        found = apply_mask(path, labels, same_labels=False)
        np.testing.assert_array_equal(found.codes, np.where(stays, codes, -1))


def test_labels_that_were_dropped_do_not_matter(tmp_path):
    """Only what stays is compared: a mask fits labels that differ where it drops them."""
    path, full, kept = saved(tmp_path)
    codes = full.codes.copy()
    row = np.flatnonzero(kept.column("eel") == -1)[0]
    codes[row, 2] = 1 - codes[row, 2]
    labels = PartialLabels(codes, ids=full.ids, categories=full.categories)
    assert apply_mask(path, labels) == kept


def test_what_cannot_be_saved(tmp_path):
    """Kept labels that are of other images or categories, or were never there."""
    full = small()
    path = tmp_path / "m"
    for kept, error, message in (
        (full.take_rows(slice(5)), ShapeError, "5 rows kept"),
        (full.take_categories([1, 0, 2]), CategoryError, "'dog' instead of 'cat'"),
        (full.take_rows(slice(None, None, -1)), IdError, "'image-19' instead of 'image-0'"),
        (PartialLabels(full.codes, categories=full.categories), IdError, "one side only"),
    ):
        with pytest.raises(error, match=message):
            save_mask(path, full, kept, protocol=PROTOCOL)
    for before, now in ((0, 1), (-1, 0), (-1, -2), (-2, 1)):
        labels = PartialLabels([[1, 0], [1, before], [1, now]], ids=["a", "b", "c"])
        kept = PartialLabels([[1, -1], [-1, now], [1, -1]], ids=["a", "b", "c"])
        with pytest.raises(LabelError, match=rf"{now} in row 1 \('b'\), category '1'"):
            save_mask(path, labels, kept, protocol=PROTOCOL)
    assert not path.exists()
    with pytest.raises(OutputError, match="cannot write"):
        save_mask(tmp_path / "nowhere" / "m", full, full, protocol=PROTOCOL)


@pytest.mark.parametrize(
    "protocol",
    [
        {"name": "drop_uniform"},
        {"seed": 0},
        {"name": 3, "seed": 0},
        {"name": "x", "seed": 0, "keep": float("nan")},
        {"name": "x", "seed": 0, "keep": np.float32(0.5)},
        {"name": "x", "seed": 0, 1: 2},
        {"name": "x", "seed": 0, "more": (1, 2)},
        None,
        "drop_uniform",
    ],
)
def test_protocols_that_cannot_be_used(tmp_path, protocol):
    """A protocol must tell its name and seed, and come back from the file as it was."""
    with pytest.raises(ConfigError, match="protocol of a mask"):
        save_mask(tmp_path / "m", small(), small(), protocol=protocol)


def test_files_that_are_no_masks(tmp_path):
    """A missing file, a folder, text, another safetensors file, and another format."""
    for name, content, message in (
        ("none", None, "No such file"),
        ("text", b"id,cat\n", "shorter than"),
        ("empty", b"", "is empty"),
        ("other", build({"a": ("U8", (1,), b"x")}, {}), "another safetensors file"),
        ("later", build({}, {"catwise_mask": "9"}), "format 9"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LabelError, match=message) as caught:
            read_mask(path)
        assert str(path) in str(caught.value)
    with pytest.raises(LabelError, match="cannot read"):
        read_mask(tmp_path)


@pytest.mark.parametrize("make", [small, sparse])
def test_every_damaged_byte_is_seen(tmp_path, make):
    """A file that is cut or changed anywhere is refused with an error that names it."""
    path = saved(tmp_path, make())[0]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, 8, 9, len(whole) - 1, *rng.integers(0, len(whole), 150).tolist()}
    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(LabelError, match=r"mask\.safetensors"):
            read_mask(path)
    for content in (whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(LabelError, match="cannot read the mask"):
            read_mask(path)


def test_another_spelling_of_the_header_is_seen(tmp_path):
    """The same content in other bytes is not the file that was written."""
    path = saved(tmp_path)[0]
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    spaced = struct.pack("<Q", length + 8) + raw[8 : 8 + length] + b" " * 8 + raw[8 + length :]
    path.write_bytes(spaced)
    with pytest.raises(LabelError, match="checksum is wrong"):
        read_mask(path)


GOOD = {
    "catwise_mask": "1",
    "categories": '["a","b"]',
    "protocol": '{"name":"x","seed":0}',
    "labels_sha256": "",
    "n_rows": "3",
    "n_kept": "2",
    "n_full": "4",
}
BITS = ("U8", (3, 1), bytes([0b10000000, 0b01000000, 0]))


def columns(starts, rows):
    return {
        "starts": ("I64", (len(starts),), np.array(starts, "<i8").tobytes()),
        "rows": ("I32", (len(rows),), np.array(rows, "<i4").tobytes()),
    }


def forged(path, tensors, **changes):
    """A file whose checksum is right, whatever is in it."""
    metadata = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    sha = hashlib.sha256(build(tensors, metadata)).hexdigest()
    path.write_bytes(build(tensors, {**metadata, "sha256": sha}))
    return path


def test_forged_files_that_are_right_are_read(tmp_path):
    """The helper of the next test writes files that are read where nothing is wrong."""
    for tensors in ({"bits": BITS}, columns([0, 1, 2], [0, 1]), columns([0, 1, 2], [2, 0])):
        assert read_mask(forged(tmp_path / "m", tensors)).n_kept == 2


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({"bits": BITS}, {"n_rows": None}, "no 'n_rows'"),
        ({"bits": BITS}, {"n_rows": "three"}, "damaged"),
        ({"bits": BITS}, {"categories": "{}"}, "categories"),
        ({"bits": BITS}, {"categories": "["}, "damaged"),
        ({"bits": BITS}, {"categories": "[1, 2]"}, "categories"),
        ({"bits": BITS}, {"protocol": "3"}, "protocol"),
        ({"bits": BITS}, {"n_rows": "4"}, "for 4 rows"),
        ({"bits": BITS}, {"n_kept": "3"}, "not 3"),
        ({"bits": BITS}, {"categories": '["a"]'}, "in the categories"),
        ({"bits": BITS, "more": BITS}, {}, "bits of shape"),
        ({}, {}, "other tensors"),
        ({"starts": BITS, "rows": BITS}, {}, "other tensors"),
        (columns([0, 2], [0, 1]), {}, "for 2 labels"),
        (columns([0, 1, 2], [0, 1, 2]), {}, "for 2 labels"),
        (columns([0, 3, 2], [0, 1]), {}, "beyond"),
        (columns([1, 1, 2], [0, 1]), {}, "beyond"),
        (columns([0, 1, 2], [0, 3]), {}, "beyond"),
        (columns([0, 1, 2], [-1, 1]), {}, "beyond"),
        (columns([0, 2, 2], [1, 1]), {}, "ascend"),
        (columns([0, 0, 2], [2, 1]), {}, "ascend"),
    ],
)
def test_forged_files(tmp_path, tensors, changes, message):
    """Parts that do not fit together are refused even where the checksum is right."""
    path = forged(tmp_path / "forged", tensors, **changes)
    with pytest.raises(LabelError, match=message) as caught:
        read_mask(path)
    assert str(path) in str(caught.value)
