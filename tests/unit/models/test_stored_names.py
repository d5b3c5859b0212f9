"""Names of rows out of configuration files."""

from __future__ import annotations

from typing import Any

import pytest

from catwise.errors import CategoryError
from catwise.models.stored_names import check_inverse, names_by_number


@pytest.mark.parametrize(
    "names",
    [
        {0: "a", 1: "b", 2: "c"},
        {"2": "c", "0": "a", "1": "b"},
        ["a", "b", "c"],
        ("a", "b", "c"),
    ],
)
def test_names_of_rows(names: Any) -> None:
    """Keys may be numbers or their texts, in any order; a list is as good."""
    assert names_by_number(names, where="it", n_rows=3) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"1": "a", "2": "b", "3": "c", "4": "d"}, "numbers 4, and none for row 0"),
        ({"0": "a", "2": "c"}, "numbers 2, and none for row 1"),
        ({"0": "a", "00": "b"}, "numbers 00, and none for row 1"),
        ({"a": 0, "b": 1}, "numbers a, b, and none for row 0, 1"),
        ({"-1": "none", "0": "a"}, "numbers -1"),
        ({"0": "a", "1.0": "b"}, r"numbers 1\.0"),
        ({"0": "a", "1": None}, "a NoneType as a name"),
        ({"0": ["a"], "1": "b"}, "a list as a name"),
        ("ab", "a str"),
        ({"0": "a"}, r"1 names(.|\n)*2, one for each row"),
        (["a", "b", "c"], "3 names"),
    ],
)
def test_names_that_do_not_count_the_rows(names: Any, reason: str) -> None:
    """From 1 instead of 0, with gaps, turned round, too few or too many, or no texts."""
    with pytest.raises(CategoryError, match=reason) as caught:
        names_by_number(names, where="id2label in 'x'", n_rows=2 if len(names) != 4 else 4)
    assert "id2label in 'x'" in str(caught.value)
    assert "--head-categories" in str(caught.value)


@pytest.mark.parametrize(
    "inverse",
    [None, {}, {"a": 0, "b": 1, "c": 2}, {"c": "2", "a": "0", "b": "1"},
     {"LABEL_0": 0, "LABEL_1": 1}],
)  # fmt: skip
def test_tables_that_lead_back(inverse: Any) -> None:
    """Absent, empty, as numbers or texts, or the default that transformers writes."""
    check_inverse(["a", "b", "c"], inverse, where="label2id")


def test_equal_names_lead_to_one_of_their_rows() -> None:
    """A table from names can keep one of two equal ones."""
    check_inverse(["a", "b", "a"], {"a": 2, "b": 1}, where="label2id")


@pytest.mark.parametrize(
    ("inverse", "reason"),
    [
        ({"a": 1, "b": 2, "c": 3}, "'a' is 1; 'b' is 2; 'c' is 3"),
        ({"a": 0, "b": 2, "c": 1}, "'b' is 2; 'c' is 1"),
        ({"a": 0, "b": 1}, "'c' is absent"),
        ({"a": 0, "b": 1, "c": 2, "d": 3}, "'d' is 3"),
        (["a", "b", "c"], "a list"),
    ],
)
def test_tables_that_do_not_lead_back(inverse: Any, reason: str) -> None:
    """What contradicts the names is refused by the names."""
    with pytest.raises(CategoryError, match=reason):
        check_inverse(["a", "b", "c"], inverse, where="label2id")
