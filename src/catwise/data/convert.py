"""Conversions of data sets for other tools: FiftyOne, cleanlab, Hugging Face `datasets`.

None of these tools knows a label that is unknown. Here an unknown label is one that is not there:
in no list of a sample, in no row of a task. It never becomes a negative, and never NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._extras import import_optional
from catwise.data.dataset import Dataset
from catwise.errors import ConfigError, FeatureError, LabelError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN
from catwise.labels.core import PartialLabels
from catwise.labels.priors import checked_scores

KINDS: Final = {"positive": POSITIVE, "negative": NEGATIVE, "uncertain": UNCERTAIN}
SPLIT_NAME: Final = re.compile(r"\w+(\.\w+)*")
SAMPLES: Final = 1 << 12


# ------------------------------------------------------------------------------------- FiftyOne


def fiftyone_samples(
    dataset: Dataset, *, kinds: Sequence[str] = tuple(KINDS), skip_without_path: bool = False
) -> Iterator[dict[str, Any]]:
    """Say what the FiftyOne sample of each image holds, without FiftyOne.

    Args:
        dataset: the images; FiftyOne's samples are files, so each needs a path.
        kinds: which labels: "positive", "negative", "uncertain". With many categories the negatives
            are by far the most.
        skip_without_path: leave out images without a path instead of refusing them.

    Yields:
        For each image, in order: "filepath" (absolute), "tags" (the split, if it has one),
        "image_id" and "group_id" (where there are ids and groups), and for each kind the names of
        the categories. A category in none of the lists is unknown.

    Raises:
        ConfigError: If there is no such kind.
        FeatureError: If an image has no path.

    >>> from pathlib import Path
    >>> from catwise.data import Dataset
    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1, -1, 0]], categories=["cat", "dog", "eel"])
    >>> [sample] = fiftyone_samples(Dataset("mine", Path("/x"), ["a.jpg"], labels, ["train"]))
    >>> sample["tags"], sample["positive"], sample["negative"]
    (['train'], ['cat'], ['eel'])
    """
    for kind in kinds:
        check_choice("a kind of labels", kind, KINDS)
    absent = np.flatnonzero(dataset.paths == "")
    if len(absent) and not skip_without_path:
        first = _name(dataset, absent[0])
        raise FeatureError(
            "FiftyOne's samples are files, and images of this data set have no path.",
            found=f"{len(absent):,} of {len(dataset):,} images (first: {first})",
            remedy="the reader's options for images, or skip_without_path=True",
        )
    return _samples(dataset, list(kinds))


def _samples(dataset: Dataset, kinds: list[str]) -> Iterator[dict[str, Any]]:
    labels, root = dataset.labels, dataset.root.absolute()
    names = np.array(labels.categories, dtype=object)
    step = max(1, min(SAMPLES, (1 << 23) // max(labels.n_categories, 1)))
    for start in range(0, len(dataset), step):
        codes = labels.block(start, start + step)
        for i, row in enumerate(codes, start):
            if not dataset.paths[i]:
                continue
            sample: dict[str, Any] = {
                "filepath": str(root / str(dataset.paths[i])),
                "tags": [str(dataset.splits[i])] if dataset.splits[i] else [],
            }
            if labels.ids is not None:
                sample["image_id"] = str(labels.ids[i])
            if labels.groups is not None:
                sample["group_id"] = str(labels.groups[i])
            yield sample | {kind: names[row == KINDS[kind]].tolist() for kind in kinds}


def to_fiftyone(
    dataset: Dataset,
    name: str | None = None,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    skip_without_path: bool = False,
) -> Any:
    """Make a FiftyOne data set: a sample for each image, its labels as `Classifications`.

    It is not persistent, and called `name`, which must be new (None: FiftyOne picks one). The other
    arguments, the fields and the errors are those of `fiftyone_samples`; what the labels mean is in
    its `info`. MissingExtraError if FiftyOne is not installed or cannot be imported.
    """
    samples = fiftyone_samples(dataset, kinds=kinds, skip_without_path=skip_without_path)
    fo = import_optional("fiftyone", extra="fiftyone", purpose="converting to FiftyOne")
    made = fo.Dataset(name)
    made.info = {"catwise": {"name": dataset.name, "notes": list(dataset.notes)}}
    made.classes = {kind: list(dataset.labels.categories) for kind in kinds}
    made.add_samples(_fiftyone_sample(fo, sample, kinds) for sample in samples)
    return made


def _fiftyone_sample(fo: Any, sample: dict[str, Any], kinds: Sequence[str]) -> Any:
    fields = {
        kind: fo.Classifications(
            classifications=[fo.Classification(label=name) for name in sample[kind]]
        )
        for kind in kinds
    }
    return fo.Sample(**{**sample, **fields})


# ------------------------------------------------------------------------------------- cleanlab


class CleanlabTask(NamedTuple):
    """One category as cleanlab takes a classification task: no NaN, nothing unknown."""

    rows: NDArray[np.int64]  # of the data set, ascending: the known ones
    labels: NDArray[np.int64]  # 0 or 1
    pred_probs: NDArray[np.float64] | None  # (n, 2): P(negative), P(positive)


class CleanlabLists(NamedTuple):
    """The rows of which every label is known, as cleanlab's multi-label functions take them."""

    rows: NDArray[np.int64]
    labels: list[list[int]]  # the positions of the positive categories
    pred_probs: NDArray[np.float64] | None  # (n, C)


def to_cleanlab(labels: PartialLabels, logits: Any = None) -> dict[str, CleanlabTask]:
    """Give each category as a binary task of its known rows, for `cleanlab.filter` and `rank`.

    cleanlab has no unknown labels, and its multi-label functions take what is not listed for
    negative. Therefore every category is a task of its own.

    Args:
        labels: (N, C), such as `Dataset.labels`; uncertain labels count as unknown.
        logits: (N, C) of a model, best of one that was not fitted on these rows; None: no
            `pred_probs`. FeatureError if one is NaN, ShapeError if they do not fit the labels.

    Returns:
        Category → task. Categories without a known positive or a known negative are left out:
        there is nothing to compare.

    Source: https://docs.cleanlab.ai, `cleanlab.filter.find_label_issues(labels, pred_probs)`.

    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1, -1], [-1, -1], [0, 1]], categories=["cat", "dog"])
    >>> tasks = to_cleanlab(labels, logits=[[0.0, 1.0]] * 3)
    >>> list(tasks), tasks["cat"].rows.tolist(), tasks["cat"].labels.tolist()
    (['cat'], [0, 2], [1, 0])
    >>> tasks["cat"].pred_probs.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    values = None if logits is None else checked_scores(logits, labels, probabilities=False)
    tasks = {}
    for j, name in enumerate(labels.categories):
        rows, positive = labels.known(j)
        if not positive.any() or positive.all():
            continue
        chances = None
        if values is not None:
            here = values[rows, j].astype(np.float64)
            chances = np.stack([_sigmoid(-here), _sigmoid(here)], axis=1)
        tasks[name] = CleanlabTask(rows, positive.astype(np.int64), chances)
    return tasks


def to_cleanlab_lists(labels: PartialLabels, logits: Any = None) -> CleanlabLists:
    """Give the completely known rows for `cleanlab.multilabel_classification`.

    Rows with an unknown or uncertain label are left out; LabelError if no other is there. The rest
    is as for `to_cleanlab`.

    Source: https://docs.cleanlab.ai, `cleanlab.multilabel_classification.filter`.

    >>> from catwise.labels import PartialLabels
    >>> to_cleanlab_lists(PartialLabels([[1, 0], [1, -1], [0, 0]])).labels
    [[0], []]
    """
    values = None if logits is None else checked_scores(logits, labels, probabilities=False)
    complete, lists = [np.empty(0, dtype=np.int64)], []
    for start, codes in labels.blocks():
        at = np.flatnonzero((codes >= 0).all(axis=1))
        complete.append(at + start)
        lists += [np.flatnonzero(row == POSITIVE).tolist() for row in codes[at]]
    rows = np.concatenate(complete)
    if not len(rows):
        raise LabelError(
            "no row is completely known, and cleanlab's multi-label functions know no other.",
            found=f"{labels.n_rows:,} rows, each with an unknown or uncertain label",
            remedy="to_cleanlab, one task for each category",
        )
    return CleanlabLists(rows, lists, None if values is None else _sigmoid(values[rows]))


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Stable for logits of any size."""
    values = logits.astype(np.float64)
    small = np.exp(-np.abs(values))
    chance: NDArray[np.float64] = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return chance


# --------------------------------------------------------------------------------- Hugging Face


def to_huggingface(dataset: Dataset, *, images: bool = True) -> Any:
    """Make a Hugging Face `datasets.DatasetDict`, one `datasets.Dataset` for each split.

    Args:
        dataset: the images. Rows without a split are in the split "all"; ConfigError if the name
            of a split is none that `datasets` takes.
        images: a column "image" of `datasets.Image`, whose files are opened when asked for; False:
            a column "path" of texts. Either is null where an image has no path.

    Returns:
        These columns, "image_id" and "group_id" (where there are ids and groups), and "positive",
        "negative" and "uncertain": lists of `ClassLabel`s. A category in none of the three is
        unknown. MissingExtraError if `datasets` is not installed or cannot be imported.
    """
    datasets = import_optional(
        "datasets", extra="datasets", purpose="converting to a Hugging Face data set"
    )
    splits = np.where(dataset.splits == "", "all", dataset.splits)
    names, first = np.unique(splits, return_index=True)
    for name in names.tolist():
        if not SPLIT_NAME.fullmatch(name):
            raise ConfigError(
                "the name of a split is none that a Hugging Face data set takes.",
                found=repr(name),
                expected="letters, digits, underscores, and points between them",
                remedy="dataclasses.replace(dataset, splits=…)",
            )
    features = _huggingface_features(datasets, dataset, images=images)
    made = {
        name: datasets.Dataset.from_dict(
            _huggingface_columns(dataset.take(np.flatnonzero(splits == name)), images=images),
            features=features,
        )
        for name in names[np.argsort(first)].tolist()
    }
    return datasets.DatasetDict(made)


def _huggingface_features(datasets: Any, dataset: Dataset, *, images: bool) -> Any:
    text = datasets.Value("string")
    features = {"image": datasets.Image()} if images else {"path": text}
    features |= {} if dataset.labels.ids is None else {"image_id": text}
    features |= {} if dataset.groups is None else {"group_id": text}
    listed = [datasets.ClassLabel(names=list(dataset.labels.categories))]
    return datasets.Features(features | dict.fromkeys(KINDS, listed))


def _huggingface_columns(dataset: Dataset, *, images: bool) -> dict[str, Any]:
    import pyarrow as pa

    root = dataset.root.absolute()
    paths = [str(root / path) if path else None for path in dataset.paths.tolist()]
    columns: dict[str, Any] = {"image" if images else "path": pa.array(paths, pa.string())}
    for name, texts in (("image_id", dataset.labels.ids), ("group_id", dataset.groups)):
        if texts is not None:
            columns[name] = pa.array(texts.tolist(), pa.string())
    entries = dataset.labels.as_columns()
    category = np.repeat(np.arange(entries.n_columns), np.diff(entries.starts))
    order = np.argsort(entries.rows, kind="stable")  # in each row, by category
    rows, category, codes = entries.rows[order], category[order], entries.codes[order]
    for kind, code in KINDS.items():
        here = codes == code
        ends = np.zeros(len(dataset) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows[here], minlength=len(dataset)), out=ends[1:])
        columns[kind] = pa.LargeListArray.from_arrays(ends, category[here])
    return columns


def _name(dataset: Dataset, row: Any) -> str:
    ids = dataset.labels.ids
    return f"in row {int(row):,}" if ids is None else repr(str(ids[row]))
