"""What follows from labels of categories that are kinds of one another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from catwise.cli.main import main
from catwise.data import read_hierarchy
from catwise.errors import LabelError
from catwise.labels import Hierarchy, PartialLabels

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [f"c{j}" for j in range(6)]


def by_hand(codes: np.ndarray[Any, Any], above: dict[int, set[int]]) -> np.ndarray[Any, Any]:
    """The rule, entry by entry."""
    new = codes.copy()
    for row, column in np.ndindex(codes.shape):
        if codes[row, column] in (0, 1):
            continue
        is_positive = any(codes[row, k] == 1 for k, up in above.items() if column in up)
        is_negative = any(codes[row, k] == 0 for k in above.get(column, ()))
        if is_positive != is_negative:
            new[row, column] = 1 if is_positive else 0
    return new


@given(
    st.lists(
        st.lists(st.sampled_from([1, 0, -1, -2]), min_size=6, max_size=6), min_size=1, max_size=5
    ),
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda edge: edge[0] < edge[1])),
    st.sampled_from(["dense", "columns"]),
)
def test_the_rule_entry_by_entry(
    rows: list[list[int]], edges: set[tuple[int, int]], storage: Any
) -> None:
    """Ancestors at any distance, conflicts left alone, in both storages; nothing known changes."""
    if not edges:
        return
    codes = np.array(rows, dtype=np.int8)
    above: dict[int, set[int]] = {j: set() for j in range(6)}
    for child in reversed(range(6)):
        for one, parent in edges:
            if one == child:
                above[child] |= {parent} | above[parent]
    hierarchy = Hierarchy.of([(NAMES[a], NAMES[b]) for a, b in edges])
    labels = PartialLabels(codes, categories=NAMES, storage=storage)
    found = hierarchy.apply(labels)
    right = by_hand(codes, above)
    np.testing.assert_array_equal(found.labels.codes, right)
    np.testing.assert_array_equal(labels.codes, codes)
    assert found.labels.storage == storage
    assert found.n_positive == int(((right == 1) & (codes != 1)).sum())
    assert found.n_negative == int(((right == 0) & (codes != 0)).sum())
    wrong = {
        (str(row), NAMES[j])
        for row, j in np.ndindex(codes.shape)
        if codes[row, j] == 0 and any(codes[row, k] == 1 and j in above[k] for k in range(6))
    }
    assert {(one.image, one.negative) for one in found.conflicts} == wrong
    assert found.n_conflicts == len(wrong)
    for one in found.conflicts:
        assert codes[int(one.image), NAMES.index(one.positive)] == 1


TREE = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {
            "LabelName": "/m/0jbk",
            "Subcategory": [{"LabelName": "/m/0bt9lr"}],
            "Part": [{"LabelName": "/m/0dzct", "Subcategory": [{"LabelName": "/m/014sv8"}]}],
        }
    ],
}  # /m/0jbk animal, /m/0bt9lr dog, a part of it: face; of which one kind


def test_trees_and_tables(tmp_path: Path) -> None:
    """Open Images' file, in which a part is no kind; tables with and without a header."""
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    tree = read_hierarchy(tmp_path / "tree.json").ancestors
    assert tree["/m/0bt9lr"] == {"/m/0jbk", "/m/0bl9f"}
    assert tree["/m/014sv8"] == {"/m/0dzct"}
    for name, text in (("a.csv", "child,parent\ndog,animal\n"), ("b.tsv", "dog\tanimal\n")):
        (tmp_path / name).write_text(text)
        assert read_hierarchy(tmp_path / name).ancestors["dog"] == {"animal"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "a,b\nb,c\nc,a\n", "a kind of itself"),
        ("a.csv", "a,a\n", "a kind of itself"),
        ("a.csv", "a,b,c\n", "3 columns"),
        ("a.csv", "a,b\nc,\n", "without a child or a parent"),
        ("a.json", '{"Subcategory": []}', "not a tree"),
        ("a.json", '{"LabelName": "a", "Subcategory": [3]}', "not a tree"),
        ("a.json", '{"LabelName": "a", "Subcategory": {}}', "not a tree"),
        ("a.json", "[", "truncated"),
    ],
)
def test_what_is_no_hierarchy(tmp_path: Path, name: str, text: str, told: str) -> None:
    """Loops, other tables and other JSON are refused."""
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelError, match=told):
        read_hierarchy(tmp_path / name)


def test_on_the_command_line(tmp_path: Path) -> None:
    """Off by default; counted in the audit, conflicts listed; other names are refused."""
    (tmp_path / "l.csv").write_text("id,dog,animal\na,1,\nb,,0\nc,1,0\nd,0,1\n")
    (tmp_path / "h.csv").write_text("dog,animal\n")
    line = ["audit", "--labels", str(tmp_path / "l.csv"), "--encoding", "nan", "--id-column", "id"]

    def audit(*more: str) -> dict[str, Any]:
        result = CliRunner().invoke(main, [*line, *more, "--json"])
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    assert audit()["summary"]["n_known"] == 6
    found = audit("--hierarchy", str(tmp_path / "h.csv"))
    assert found["summary"]["n_known"] == 8
    assert found["dataset"]["counts"]["positives_by_hierarchy"] == 1
    assert found["dataset"]["counts"]["negatives_by_hierarchy"] == 1
    assert found["dataset"]["counts"]["conflicts_with_hierarchy"] == 1
    assert "'c': 'dog' positive, 'animal' negative" in " ".join(found["dataset"]["notes"])
    (tmp_path / "h.csv").write_text("Dog,Animal\n")
    result = CliRunner().invoke(main, [*line, "--hierarchy", str(tmp_path / "h.csv")])
    assert result.exit_code == 3
    assert "--rename OLD=NEW" in result.output
