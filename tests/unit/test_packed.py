"""Packed files: what they hold is read as if they were not packed; damage is never read over."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from catwise.data import read_chexpert, read_label_table, read_table
from catwise.errors import LabelError

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.labels import PartialLabels

WIDE = "id,cat,dog\n" + "".join(f"i{row},{row % 2},\n" for row in range(5000))
LINES = "".join(f'{{"id": "i{row}", "cat": {row % 2}, "dog": null}}\n' for row in range(5000))


def pack(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(text.encode())
    else:
        path.write_text(text)
    return path


def read(path: Path) -> PartialLabels:
    return read_label_table(path, encoding="nan", id_column="id")


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", WIDE),
        ("l.tsv", WIDE.replace(",", "\t")),
        ("l.csv", WIDE.replace("i7,", '"i7",')),  # with quotes every record is looked at
        ("l.jsonl", LINES),
        ("l.json", LINES),
        ("labels", LINES),
        ("l.txt", "\n\n" + LINES),
    ],
)
def test_tables_packed_or_not(tmp_path: Path, name: str, text: str, packing: str) -> None:
    """CSV, TSV, and JSON lines under any suffix."""
    plain = read(pack(tmp_path / "plain.csv", WIDE))
    packed = read(pack(tmp_path / f"{name}{packing}", text))
    assert packed == plain
    assert packed.shape == (5000, 2)


@pytest.mark.parametrize("name", ["l.csv.zst", "l.jsonl.zst", "l.csv.gz", "l.jsonl.gz"])
def test_damaged_packings(tmp_path: Path, name: str) -> None:
    """A file that is cut anywhere, or of another kind, is refused and never read in part."""
    path = pack(tmp_path / name, LINES if "jsonl" in name else WIDE)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 9, len(whole) // 2, 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(LabelError, match=r"truncated|is not a|damaged"):
            read(path)
    path.write_bytes(b"id,cat\na,1\n")
    with pytest.raises(LabelError, match=r"is not a|truncated"):
        read(path)


def test_places_in_packed_tables(tmp_path: Path) -> None:
    """Errors name the line of what is packed."""
    path = pack(tmp_path / "l.csv.zst", WIDE.replace("i77,1", "i77,9"))
    with pytest.raises(LabelError, match=r"9 in .*line 79, column 'cat'"):
        read(path)


def test_tables_of_data_sets(tmp_path: Path) -> None:
    """A data set's own table may be packed."""
    row = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Frontal,1.0\n"
    pack(tmp_path / "train.csv.gz", "Path,Frontal/Lateral,Edema\n" + row)
    found = read_chexpert(tmp_path, categories=["Edema"])
    assert found.labels.codes.tolist() == [[1]]


def test_a_table_of_a_suffix_that_says_nothing(tmp_path: Path) -> None:
    """What does not begin as JSON lines is asked for; splits of packed tables are read."""
    (tmp_path / "l.dat").write_text(WIDE)
    with pytest.raises(LabelError, match=r"\.jsonl[\s\S]*delimiter=','"):
        read(tmp_path / "l.dat")
    text = "id,part,cat\na,train,1\nb,test,0\n"
    path = pack(tmp_path / "s.csv.zst", text)
    table = read_table(path, encoding="nan", id_column="id", split_column="part")
    assert table.splits.tolist() == ["train", "test"]
