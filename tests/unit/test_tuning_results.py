"""What a tuning leaves: records, summary, folds on disk, and the memory of its rows."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import catwise
from catwise import PartialLabels
from catwise.errors import (
    FeatureStoreError,
    InSampleWarning,
)
from catwise.heads import Head, save_head
from catwise.joining import source_digests
from catwise.reporting.tables import RECORD_COLUMNS
from catwise.testing import assert_same_head
from catwise.tuning.account.records import EXPLANATIONS, Scores, make_records
from catwise.tuning.account.results import FoldArtifacts, changed_head
from tuning_case import QUICK, SMALL, task, tuned, with_codes

SUMMARY = (
    *("metric", "n_categories", "n_replaced", "n_kept", "n_skipped", "n_scored"),
    *("before", "after", "gain", "gain_low", "gain_high", "level", "selected_on"),
    *("choice", "seconds", "passes", "rows"),
)
CONFIG = (
    *("preset", "methods", "validation", "metric", "seed", "device", "policy", "options"),
    *("catwise", "torch", "base"),
)


def halved(made=None):
    """A task in which two categories cannot be judged: all positive, and unknown, on validation."""
    made = made or task()
    codes = made.valid.labels.codes.copy()
    codes[:, 1] = np.where(codes[:, 1] >= 0, 0, -1)
    codes[:, 3] = -1
    return made, with_codes(made.valid, codes)


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": "select"}, {"preset": "paper", "config": QUICK}, {"metric": "log_loss"}],
    ids=["default", "select", "paper", "log_loss"],
)
def test_records_are_complete_and_agree_with_the_summary(options):
    """Every key is there, everything is JSON, and means and counts are those of the records."""
    made, valid = halved()
    result = catwise.tune(made.head, made.train.pair, valid, **options)
    for part in (result.records, result.summary, result.config, result.gap, result.history):
        json.dumps(part, allow_nan=False)
    assert tuple(result.summary) == SUMMARY
    assert tuple(result.config) == CONFIG
    assert all(tuple(r) == RECORD_COLUMNS for r in result.records)
    status = [r["status"] for r in result.records]
    for word in ("replaced", "kept", "skipped"):
        assert result.summary[f"n_{word}"] == status.count(word)
    before = [r["before"] for r in result.records if r["before"] is not None]
    assert result.summary["n_scored"] == len(before) == 3
    assert result.summary["before"] == pytest.approx(np.mean(before))
    raw = [r["selected_on"] for r in result.records if r["selected_on"] is not None]
    assert result.summary["selected_on"] == pytest.approx(np.mean(raw))
    for c, record in enumerate(result.records):
        codes = made.train.labels.codes[:, c], valid[1].codes[:, c]
        for name, known in zip(("train", "valid"), codes, strict=True):
            assert record[f"n_positive_{name}"] == int((known == 1).sum())
            assert record[f"n_negative_{name}"] == int((known == 0).sum())
        if record["after"] is not None:
            assert record["gain"] == pytest.approx(record["after"] - record["before"])
            if record["interval_reason"] is None:
                assert record["gain_low"] <= record["gain"] <= record["gain_high"]
            else:
                assert record["gain_low"] is record["gain_high"] is None
                assert record["interval_reason"] in EXPLANATIONS
            assert (record["interval_reason"] == "unchanged") == (record["status"] == "kept")
    if options.get("preset") == "paper":
        assert result.summary["after"] is result.summary["gain"] is None
        return
    if "kept" not in status:  # a kept category is scored as the choice was, in the mean
        after = [r["after"] for r in result.records if r["after"] is not None]
        assert result.summary["after"] == pytest.approx(np.mean(after))
    summary = result.summary
    assert summary["gain"] == pytest.approx(summary["after"] - summary["before"])
    assert summary["gain_low"] < summary["gain"] < summary["gain_high"]


def test_out_of_fold_logits_are_those_of_the_fold_heads():
    """Row by row the logits are what the head fitted without that row's fold says."""
    made, valid = halved()
    result = catwise.tune(made.head, made.train.pair, valid)
    folds = result.folds
    assert sorted(set(folds.fold.tolist())) == [0, 1, 2, 3, 4]
    assert folds.ids.tolist() == made.valid.labels.ids.tolist()
    z = np.asarray(made.valid.features.values)
    for f, head in enumerate(folds.heads):
        rows = np.flatnonzero(folds.fold == f)
        expected = head.logits(z[rows]).numpy()
        np.testing.assert_allclose(folds.logits[rows], expected, rtol=1e-3, atol=1e-3)
    own = made.head.logits(z).numpy()
    kept = [c for c, r in enumerate(result.records) if r["status"] != "replaced"]
    assert set(kept) >= {1, 3}
    for c in range(5):  # a category that keeps its head keeps its logits
        assert np.allclose(folds.logits[:, c], own[:, c]) == (c in kept)
        same = np.allclose(folds.weight[:, c], made.head.weight[c].numpy())
        assert same == (c in kept)


@pytest.mark.parametrize("options", [{"config": SMALL}, {"preset": "paper", "config": QUICK}])
def test_the_head_remembers_what_fitted_and_chose_it(options):
    """All training and validation rows are in, and evaluate warns on them, not on test rows."""
    made = task()
    result = tuned(**options)
    wanted = np.concatenate([source_digests(*s.pair) for s in (made.train, made.valid)])
    assert np.isin(wanted, result.head.fitted_on).all()
    for split in (made.train, made.valid):
        with pytest.warns(InSampleWarning):
            found = catwise.evaluate(result.head, split.pair)
        assert found.in_sample
        assert found.n_in_sample == split.labels.n_rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not catwise.evaluate(result.head, made.test.pair).in_sample


def test_tuning_twice_adds_to_the_memory():
    """What the base was fitted on is not forgotten, nor its provenance."""
    made = task()
    old = np.array([1, 2, 3], dtype=np.uint64)
    head = made.head.replace(fitted_on=old, provenance={"by": "someone"})
    result = catwise.tune(head, made.train.pair, made.valid.pair, config=SMALL)
    assert np.isin(old, result.head.fitted_on).all()
    assert result.head.provenance["by"] == "someone"
    assert result.head.provenance["catwise"]["base"] == head.digest


# ----------------------------------------------------------------------------- on disk


def artifacts(*, bias=True, ids=True):
    rng = np.random.default_rng(0)
    return FoldArtifacts(
        rng.integers(0, 3, 11).astype(np.int8),
        rng.normal(size=(11, 2)).astype(np.float32),
        rng.normal(size=(3, 2, 4)).astype(np.float32),
        rng.normal(size=(3, 2)).astype(np.float32) if bias else None,
        ("Katze, grau", "犬"),
        np.array([f"bild-{i}.jpg" for i in range(11)]) if ids else None,
    )


@pytest.mark.parametrize(("bias", "ids"), [(True, True), (False, False)])
def test_folds_come_back_as_they_were_saved(tmp_path, bias, ids):
    """Every number, name and absence survives the file."""
    one = artifacts(bias=bias, ids=ids)
    one.save(tmp_path / "folds.safetensors")
    two = FoldArtifacts.load(tmp_path / "folds.safetensors")
    for name in ("fold", "logits", "weight", "bias", "ids"):
        given, read = getattr(one, name), getattr(two, name)
        if given is None:
            assert read is None
        else:
            assert given.dtype.kind == read.dtype.kind
            assert np.array_equal(given, read)
    assert two.categories == one.categories
    assert two.version == "1"
    assert len(two.heads) == 3
    for first, second in zip(one.heads, two.heads, strict=True):
        assert_same_head(first, second)


def test_the_same_folds_are_the_same_bytes(tmp_path):
    """Saving twice writes one file's bytes."""
    for name in ("a", "b"):
        artifacts().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_folds_of_a_tuning_can_be_saved(tmp_path):
    """What tune leaves is complete."""
    folds = tuned(config=SMALL).folds
    folds.save(tmp_path / "folds.safetensors")
    again = FoldArtifacts.load(tmp_path / "folds.safetensors")
    assert np.array_equal(again.logits, folds.logits)
    assert again.ids.tolist() == folds.ids.tolist()
    assert again.categories == task().head.categories


@pytest.mark.parametrize("damage", ["absent", "truncated", "text", "other", "version", "fold"])
def test_files_that_hold_no_folds(tmp_path, damage):
    """Each is refused with its path."""
    path = tmp_path / "folds.safetensors"
    if damage == "truncated":
        artifacts().save(path)
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "text":
        path.write_text("category,score\n")
    elif damage == "other":
        save_head(Head([[1.0]]), path)
    elif damage == "version":
        replace(artifacts(), version="2").save(path)
    elif damage == "fold":
        replace(artifacts(), fold=np.full(11, 3, dtype=np.int8)).save(path)
    with pytest.raises(FeatureStoreError, match=r"folds\.safetensors"):
        FoldArtifacts.load(path)


# ------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_changed_rows_and_no_others(dtype):
    """Rows that are not named keep their bits; dtype and categories stay."""
    base = Head(torch.randn(4, 3).to(dtype), torch.randn(4).to(dtype), categories=list("abcd"))
    new = changed_head(
        base, np.array([2, 0]), torch.full((2, 3), 7.0).double(), torch.tensor([1.0, 2.0])
    )
    assert new.dtype == dtype
    assert new.categories == base.categories
    assert new.weight[0].tolist() == new.weight[2].tolist() == [7.0] * 3
    assert (new.bias[2].item(), new.bias[0].item()) == (1.0, 2.0)
    for c in (1, 3):
        assert torch.equal(new.weight[c], base.weight[c])
        assert torch.equal(new.bias[c], base.bias[c])


def test_no_changed_rows_is_the_same_head():
    """Nothing to change changes nothing, with a bias and without."""
    for bias in (None, [0.5, 1.5]):
        base = Head([[1.0], [2.0]], bias)
        nothing = torch.zeros(0, 1), torch.zeros(0)
        assert_same_head(changed_head(base, np.zeros(0, dtype=np.int64), *nothing), base)


def test_records_turn_what_is_not_known_into_none():
    """NaN and infinities are no JSON; without a score nothing says on what it was scored."""
    nan = np.array([np.nan, 0.5])
    scores = Scores(
        ["skipped", "replaced"],
        ["no_known_label_in_valid", "gain"],
        ["base", "x"],
        nan,
        nan + 0.25,
        nan,
        np.array([np.nan, -np.inf]),
        nan,
        [None, "few_positives"],
    )
    known = PartialLabels([[1, 0], [1, -1], [0, -2]]).counts()
    made = make_records(
        ["a", "b"],
        [4, 7],
        scores,
        metric="auroc",
        scored_on="here",
        train=known,
        valid=None,
        gaps=None,
    )
    records = [one.to_dict() for one in made]
    assert [r["index"] for r in records] == [4, 7]
    assert [r["before"] for r in records] == [None, 0.5]
    assert [r["gain"] for r in records] == [None, 0.25]
    assert [r["gain_low"] for r in records] == [None, None]
    assert [r["interval_reason"] for r in records] == [None, "few_positives"]
    assert [r["scored_on"] for r in records] == [None, "here"]
    assert [(r["n_positive_train"], r["n_negative_train"]) for r in records] == [(2, 1), (0, 1)]
    assert {r["n_positive_valid"] for r in records} == {None}
    assert records[1]["explanation"] == EXPLANATIONS["gain"]
    json.dumps(records, allow_nan=False)


def test_every_reason_has_a_sentence():
    """Codes are words, explanations are sentences."""
    for code, text in EXPLANATIONS.items():
        assert code.isidentifier()
        assert text[0].isupper()
        assert text.endswith(".")
