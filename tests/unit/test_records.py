"""What a run says: typed, as JSON by its schema, as documented; and how a result writes itself."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

import catwise
from catwise._configs import PaperConfig
from catwise.errors import OutputError
from catwise.heads import Head
from catwise.metrics.curves import HeadCurves, MovedRow
from catwise.reporting import RECORD_COLUMNS, RUN_FILES
from catwise.testing import make_task
from catwise.tuning import Record, SelectResult, Summary, TuneResult

DOCS = Path(__file__).parents[2] / "docs" / "records.md"
TYPES = {
    "string": str, "integer": int, "number": float, "object": dict, "array": list,
    "null": type(None),
}  # fmt: skip


@cache
def results() -> dict[str, TuneResult | SelectResult]:
    """Of every kind, with test rows and without."""
    task = make_task(200, 120, 300, 8, 4, seed=0)
    codes = task.valid.labels.codes.copy()
    codes[:, 1] = -1
    labels = catwise.PartialLabels(codes, task.valid.labels.ids, task.valid.labels.categories)
    valid = task.valid.features, labels
    quick = PaperConfig(lr=2e-3, max_steps=20, patience=10)
    data = task.head, task.train.pair, valid
    tuned = catwise.tune(*data, test=task.test.pair)
    return {
        "tune": tuned,
        "select_only": catwise.tune(*data, validation="select"),
        "paper": catwise.tune(*data, preset="paper", config=quick, test=task.test.pair),
        "select": catwise.select({"base": task.head, "tuned": tuned}, valid, splits=3),
    }


def check(value: dict[str, Any], schema: dict[str, Any]) -> None:
    """A value is what a schema says, as far as these schemas say anything."""
    assert set(schema["required"]) <= set(value) <= set(schema["properties"])
    for name, item in value.items():
        kinds = schema["properties"][name]["type"]
        allowed = tuple(TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
        assert isinstance(item, allowed), f"{name}={item!r} is not {kinds}"
        assert not isinstance(item, bool)


@pytest.mark.parametrize("kind", ["tune", "select_only", "paper", "select"])
def test_what_a_run_says_is_by_its_schema(kind: str) -> None:
    """Each record and the summary, as JSON; the typed ones say the same."""
    result = results()[kind]
    for typed, record in zip(result.account.records, result.records, strict=True):
        check(json.loads(json.dumps(record, allow_nan=False)), Record.schema())
        assert typed.to_dict() == record
        assert ("test_outcome" in record) == (getattr(result, "test", None) is not None)
        assert ("candidates" in record) == (kind == "select")
    check(json.loads(json.dumps(result.summary, allow_nan=False)), Summary.schema())
    assert result.account.summary.to_dict() == result.summary
    assert ("judged_by" in result.summary) == (kind == "select")


def test_columns_are_those_that_are_always_there() -> None:
    """In their order, which is that of `records.csv`; the order of dicts is the order of fields."""
    assert Record.columns() == RECORD_COLUMNS
    for result in results().values():
        for record in result.records:
            assert tuple(record)[: len(RECORD_COLUMNS)] == RECORD_COLUMNS
            order = [name for name in Record.schema()["properties"] if name in record]
            assert list(record) == order


@pytest.mark.parametrize(("part", "kind"), [(0, Record), (1, Summary)])
def test_the_documented_fields_are_those_of_the_schema(part: int, kind: type) -> None:
    """Name, type and meaning, in their order."""
    table = DOCS.read_text(encoding="utf-8").split("\n## ")[1:][part]
    rows = [tuple(row) for row in re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", table, re.M)]
    assert rows == [
        (
            name,
            one["type"] if isinstance(one["type"], str) else " or ".join(one["type"]),
            one["description"],
        )
        for name, one in kind.schema()["properties"].items()
    ]


def test_a_schema_takes_no_other_values() -> None:
    """The check of these tests sees a wrong type, a missing and a foreign field."""
    record = dict(results()["tune"].records[0])
    for wrong in ({"gain": "much"}, {"status": None}, {"foreign": 1}):
        with pytest.raises(AssertionError):
            check({**record, **wrong}, Record.schema())
    with pytest.raises(AssertionError):
        check({key: value for key, value in record.items() if key != "index"}, Record.schema())


@pytest.mark.parametrize("kind", ["tune", "select"])
def test_a_result_writes_itself(kind: str, tmp_path: Path) -> None:
    """The folder of a run, once; the report alone."""
    result = results()[kind]
    paths = result.save(tmp_path / "run")
    assert set(paths) <= set(RUN_FILES)
    assert json.loads(paths["records.json"].read_text()) == result.records
    with pytest.raises(OutputError, match="not empty"):
        result.save(tmp_path / "run")
    result.save(tmp_path / "run", overwrite=True)
    page = result.report(tmp_path / "page.html")
    assert page.read_text() == paths["report.html"].read_text()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_head_as_a_layer(bias: bool, dtype: torch.dtype) -> None:
    """The same numbers in memory of their own."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=(3, 4))).to(dtype)
    head = Head(weight, torch.arange(3.0).to(dtype) if bias else None)
    layer = head.to_linear()
    assert torch.equal(layer.weight, head.weight)
    assert (layer.bias is None) == (head.bias is None)
    assert layer.weight.requires_grad
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(head.weight, weight)
    if dtype == torch.float32:
        z = torch.randn(5, 4)
        torch.testing.assert_close(head.to_linear()(z), head.logits(z))


def test_the_documented_curves_are_those_of_the_class() -> None:
    """Name and meaning of every field that curves are drawn from, in their order."""
    table = DOCS.read_text(encoding="utf-8").split("## curves.json")[1].split("\n## ")[0]
    hints = [
        *get_type_hints(HeadCurves, include_extras=True).items(),
        *get_type_hints(MovedRow, include_extras=True).items(),
    ]
    expected = [(name, get_args(hint)[1]) for name, hint in hints]
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE) == expected
