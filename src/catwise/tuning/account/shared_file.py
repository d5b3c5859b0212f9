"""`shared.safetensors`: what the categories of a run share, so that an update can take it up."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._io import write_bytes
from catwise._json import COUNT, TABLE, TABLES, TEXT, TEXTS, WHOLE, Field, own, read_fields
from catwise._safetensors import ITEM_SIZES, NUMPY_DTYPES, build, read_arrays, read_layout
from catwise.errors import CatwiseError, ConfigError, OutputError
from catwise.labels import LabelPolicy
from catwise.labels.columns import Columns
from catwise.metrics import METRICS
from catwise.tuning.account.records import Scores
from catwise.tuning.account.shared import Shared, SharedFits, Starts
from catwise.tuning.fits.affine import Pooled
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows.coordinates import Coordinates, OwnCoordinates

SHARED_FILE: Final = "shared.safetensors"
SHARED_FORMAT: Final = "1"

_NAMES: Final = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_NUMBERS: Final = ("before", "after", "selected_on", "low", "high")
_TEXTS: Final = ("status", "reason", "candidate", "interval_reason")
_LIST: Final = Field("a list", lambda value: type(value) is list)
_NUMBER: Final = Field("a number", lambda value: type(value) in (int, float))
_MAYBE_TABLE: Final = Field("null or a table", lambda v: v is None or TABLE.test(v))
_MAYBE_TEXT: Final = Field("null or a text", lambda v: v is None or TEXT.test(v))
_FIELDS: Final = {
    "categories": TEXTS,
    "metric": TEXT,
    "config": TABLE,
    "policy": _MAYBE_TABLE,
    "scores": TABLE,
    "typical_positives": _NUMBER,
    "settings": _LIST,
    "has_mean_gain": Field("true or false", lambda value: type(value) is bool),
    "calibrations": _LIST,
    "starts": _LIST,
    "coordinates": TABLES,
    "runs": Field("null or a list", lambda value: value is None or type(value) is list),
    "sources": COUNT,
    "content": TEXTS,
    "test": _MAYBE_TEXT,
}
_COORDINATES: Final = {"unit": _NUMBER, "row": WHOLE, "share": _NUMBER}


def can_save(shared: Shared | None) -> bool:
    """Whether it can be written: a metric of one's own has no name to find it by."""
    return shared is not None and METRICS.get(shared.metric.name) is shared.metric


def save_shared(shared: Shared, path: str | os.PathLike[str]) -> None:
    """Write as safetensors: tensors by name, the rest as JSON in the metadata, and a digest."""
    packed = _Packed({}, {})
    _pack_fits(shared.fits, packed)
    fields, arrays = packed
    fields |= {
        "categories": list(shared.categories),
        "metric": shared.metric.name,
        "config": asdict(shared.config),
        "policy": None if shared.policy is None else shared.policy.to_dict(),
        "scores": {name: list(getattr(shared.scores, name)) for name in _TEXTS},
        "sources": len(shared.digests),
        "content": list(shared.content),
        "test": shared.test,
    }
    arrays |= {f"scores.{name}": np.asarray(getattr(shared.scores, name)) for name in _NUMBERS}
    for s, digests in enumerate(shared.digests):
        arrays[f"digests.{s}"] = digests
        _pack_columns(f"labels.{s}", shared.labels[s], arrays)
        if shared.fresh[s] is not shared.labels[s]:
            _pack_columns(f"fresh.{s}", shared.fresh[s], arrays)
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True)
    metadata = {
        "catwise_shared": SHARED_FORMAT,
        "fields": text,
        "sha256": _digest(text, arrays),
    }
    tensors = {name: _entry(array) for name, array in arrays.items()}
    write_bytes(Path(path), build(tensors, metadata))


def load_shared(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Shared:
    """Read what `save_shared` wrote.

    Raises:
        ConfigError: If there is no such file: an earlier version made the run, or it is of another
            preset; or if another version wrote it.
        OutputError: If it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"'{path.parent}' does not hold what its categories share.",
            found=f"no '{path.name}'",
            expected="a run of the preset 'default' that fits on validation labels, without chosen "
            "cells, by this version",
            remedy="tune all categories again, with --overwrite (overwrite=True)",
        )
    try:
        layout = read_layout(path)
        version = layout.metadata.get("catwise_shared")
        if version == SHARED_FORMAT:
            arrays, text = read_arrays(path, layout), layout.metadata.get("fields", "")
            _check_digest(text, arrays, layout.metadata.get("sha256"))
            return _unpacked(read_fields(own(text), _FIELDS), arrays, torch.device(device))
    except (OSError, ValueError, KeyError, TypeError, IndexError, CatwiseError) as error:
        raise OutputError(
            f"'{path}' is not as it was written.",
            found=getattr(error, "strerror", None) or str(error),
            remedy="copy the run again, or tune all categories again, with --overwrite "
            "(overwrite=True)",
        ) from error
    raise ConfigError(
        f"'{path}' was written by another version of catwise.",
        found=f"version {version}",
        expected=f"version {SHARED_FORMAT}",
        remedy="tune all categories again, with --overwrite (overwrite=True)",
    )


class _Packed(NamedTuple):
    fields: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def _entry(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    name = _NAMES.get(little.dtype.str) or _NAMES[little.dtype.str.lstrip("|<")]
    return name, array.shape, little.tobytes()


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of all tensors, their names, shapes and dtypes, and of the fields."""
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        kind, shape, data = _entry(arrays[name])
        found.update(f"{name} {kind} {shape} {len(data) // ITEM_SIZES[kind]}\n".encode())
        found.update(data)
    return found.hexdigest()


def _check_digest(text: str, arrays: Mapping[str, NDArray[Any]], expected: str | None) -> None:
    if _digest(text, arrays) != expected:
        raise ValueError("its content does not have the digest that it names")


def _pack_columns(name: str, columns: Columns, arrays: dict[str, NDArray[Any]]) -> None:
    for part, array in columns._asdict().items():
        arrays[f"{name}.{part}"] = array


def _columns(name: str, arrays: Mapping[str, NDArray[Any]]) -> Columns:
    return Columns(*(arrays[f"{name}.{part}"] for part in Columns._fields))


def _pack_fits(fits: SharedFits, packed: _Packed) -> None:
    fields, arrays = packed
    own_coordinates = fits.coordinates
    if isinstance(own_coordinates, OwnCoordinates):
        made = list({id(one): one for _, one in own_coordinates.runs}.values())
        numbers = {id(one): number for number, one in enumerate(made)}
        fields["runs"] = [
            [run.start, run.stop, numbers[id(one)]] for run, one in own_coordinates.runs
        ]
    else:
        made, fields["runs"] = [own_coordinates], None
    fields["coordinates"] = [
        {"unit": one.unit, "row": one.heaviest[0], "share": one.heaviest[1]} for one in made
    ]
    for number, one in enumerate(made):
        for name in ("mean", "basis", "variance"):
            arrays[f"coordinates.{number}.{name}"] = _array(getattr(one, name))
    keys = sorted(fits.calibrations)
    fields |= {
        "typical_positives": fits.typical_positives,
        "settings": [int(one) for one in fits.settings],
        "has_mean_gain": bool(fits.has_mean_gain),
        "calibrations": [list(key) for key in keys],
        "starts": [int(one) for one in fits.starts.folds],
    }
    arrays |= {
        "fold": fits.fold,
        "slopes": _array(fits.slopes),
        "means": np.array(fits.means, dtype=np.float64),
        "calibration": np.array(fits.calibration, dtype=np.float64),
        "gains": fits.gains,
        "starts.heads": _array(fits.starts.heads),
        "starts.whole": _array(fits.starts.whole),
    }
    if keys:
        arrays["calibrations"] = np.array([fits.calibrations[key] for key in keys], np.float64)
    for setting, ends in fits.starts.folds.items():
        arrays[f"starts.folds.{int(setting)}"] = _array(ends)


def _array(tensor: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return found


def _unpacked(
    fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device
) -> Shared:
    sources = range(fields["sources"])
    labels = tuple(_columns(f"labels.{s}", arrays) for s in sources)
    fresh = tuple(
        _columns(f"fresh.{s}", arrays) if f"fresh.{s}.rows" in arrays else labels[s]
        for s in sources
    )
    policy = fields["policy"]
    if policy is not None:
        uncertain: Any = policy["uncertain"]
        uncertain = uncertain if isinstance(uncertain, str) else tuple(uncertain)
        policy = LabelPolicy(uncertain=uncertain, blank=policy["blank"])
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields["config"].items()
    }
    texts: dict[str, Any] = {name: list(fields["scores"][name]) for name in _TEXTS}
    numbers: dict[str, Any] = {name: arrays[f"scores.{name}"] for name in _NUMBERS}
    return Shared(
        fits=_fits(fields, arrays, device),
        categories=tuple(fields["categories"]),
        scores=Scores(**texts, **numbers),
        metric=METRICS[fields["metric"]],
        config=DefaultConfig(**options),
        policy=policy,
        digests=tuple(arrays[f"digests.{s}"] for s in sources),
        content=tuple(fields["content"]),
        labels=labels,
        fresh=fresh,
        test=fields["test"],
    )


def _fits(
    fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device
) -> SharedFits:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).to(device)

    made = [
        _coordinates(read_fields(one, _COORDINATES), f"coordinates.{number}", tensor)
        for number, one in enumerate(fields["coordinates"])
    ]
    coordinates: Coordinates | OwnCoordinates = made[0]
    if fields["runs"] is not None:
        coordinates = OwnCoordinates(
            [(slice(start, stop), made[number]) for start, stop, number in fields["runs"]]
        )
    calibrations = {
        (setting, fold): _pooled(row)
        for (setting, fold), row in zip(
            fields["calibrations"], arrays.get("calibrations", ()), strict=True
        )
    }
    return SharedFits(
        coordinates=coordinates,
        fold=arrays["fold"],
        typical_positives=float(fields["typical_positives"]),
        slopes=tensor("slopes"),
        settings=tuple(fields["settings"]),
        means=tuple(arrays["means"].tolist()),
        has_mean_gain=fields["has_mean_gain"],
        calibration=_pooled(arrays["calibration"]),
        calibrations=calibrations,
        gains=arrays["gains"],
        starts=Starts(
            tensor("starts.heads"),
            {setting: tensor(f"starts.folds.{setting}") for setting in fields["starts"]},
            tensor("starts.whole"),
        ),
    )


def _coordinates(about: Mapping[str, Any], name: str, tensor: Any) -> Coordinates:
    mean, basis, variance = (tensor(f"{name}.{part}") for part in ("mean", "basis", "variance"))
    heaviest = about["row"], float(about["share"])
    return Coordinates(mean, basis, variance, float(about["unit"]), heaviest)


def _pooled(values: Any) -> Pooled:
    return Pooled(*(float(one) for one in values))
