"""Models of timm: built with random weights, loaded strictly from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from catwise._extras import import_optional
from catwise._io import write_text
from catwise._json import parse
from catwise._limits import MAX_JSON, read_within
from catwise._safetensors import FileLayout
from catwise.errors import ConfigError, OutputError, nearest
from catwise.heads import Head, WriteReport
from catwise.heads.catalog import Catalog
from catwise.heads.fit import check_destination
from catwise.heads.provenance import KEY
from catwise.models.adapters.lightning import count_categories, open_weights
from catwise.models.adapters.torch_modules import adapt_module, inner_layer
from catwise.models.core import LoadedModel, Preprocessing, Request, Writer
from catwise.models.packages import building, split_options
from catwise.models.stored_names import names_by_number, unique_names, with_fields
from catwise.models.writing import refuse_changes, writer_of

_REFUSED: Final = (
    "pretrained", "num_classes", "checkpoint_path", "cache_dir", "pretrained_cfg", "features_only",
)  # fmt: skip
_STORED_OPTIONS: Final = {
    "pad_type": str, "bn_eps": float, "bn_momentum": float, "act_layer": str, "global_pool": str,
    "in_chans": int, "img_size": int, "norm_layer": str, "output_stride": int,
}  # fmt: skip
_INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_MAX_TEXT: Final = 200
_CONFIG: Final = "config.json"
_NAME_FIELDS: Final = ("label_names", "labels", "label_descriptions")


def load_timm(request: Request) -> LoadedModel:
    """Load a model of timm.

    The classification layer is what the model's `get_classifier` gives. Models with a second,
    distilled head average the two: `model_args={"heads": "both"}` makes one head of them, "first"
    uses the first alone. Options such as `pad_type` and `bn_eps`, which change what a model
    computes and leave no trace among its tensors, are taken from the checkpoint's metadata where
    they are and are not given.
    """
    name, categories = request.name, request.categories
    timm = import_optional("timm", extra="timm", purpose=f"the model timm:{name}")
    own, args = split_options(request.model_args, own={"heads": "refuse"}, refused=_REFUSED)
    _check_name(timm, name)
    catalog, notes, n_rows = None, [], request.n_categories
    if request.checkpoint is None:
        notes.append("the weights are random: no checkpoint was given.")
    else:
        catalog = open_weights(request.checkpoint)
        stored = {key: value for key, value in _stored_options(catalog).items() if key not in args}
        if stored:
            said = ", ".join(f"{key}={value!r}" for key, value in stored.items())
            notes.append(f"{said}: from the checkpoint's metadata.")
        args |= stored
        notes += _metadata_notes(catalog)
        if n_rows is None:
            hint = getattr(timm.models.get_pretrained_cfg(name), "classifier", None)
            layer = request.layer or (hint[0] if isinstance(hint, (tuple, list)) else hint)
            n_rows = count_categories(catalog, layer=layer, prefix=request.prefix)
        if categories is None and (categories := _stored_names(request.checkpoint, n_rows)):
            beside = request.checkpoint.with_name(_CONFIG)
            notes.append(f"the categories' names are those of '{beside}'.")
    with building(f"timm:{name}"):
        module = timm.create_model(name, pretrained=False, num_classes=n_rows or 1000, **args)
    loaded = adapt_module(
        module,
        name=f"timm:{name}",
        preprocessing=read_preprocessing(module, args),
        layers=request.layer or _classifier(module, name),
        heads=own["heads"],
        checkpoint=request.checkpoint,
        catalog=catalog,
        prefix=request.prefix,
        categories=categories,
        notes=notes,
    )
    if request.checkpoint is not None and _config_beside(request.checkpoint) is not None:
        loaded.writer = ConfigWriter(writer_of(loaded))
    return loaded


@dataclass(frozen=True)
class ConfigWriter:
    """Writes into a copy of a file; where its rows change, with the config.json of timm beside it.

    Attributes:
        inside: writes the file.
    """

    inside: Writer

    def write(
        self,
        model: LoadedModel,
        head: Head,
        source: Path,
        destination: Path,
        *,
        resize: bool,
        overwrite: bool,
    ) -> list[WriteReport]:
        """Write the copy, and beside it what says how many rows it has and what they are called."""
        config, beside = source.with_name(_CONFIG), destination.with_name(_CONFIG)
        if resize and beside.exists() and beside.samefile(config):
            raise OutputError(
                f"'{destination}' cannot lie beside '{source}'.",
                found=f"'{config}', which says how many rows both have",
                expected="a folder of its own for a copy with other rows",
                remedy="choose another folder",
            )
        if resize:
            check_destination(beside, [], what="the config", overwrite=overwrite)
        reports = self.inside.write(
            model, head, source, destination, resize=resize, overwrite=overwrite
        )
        if resize:
            text = read_within(config, MAX_JSON).decode()
            write_text(beside, with_fields(text, _of_rows(parse(text), head.categories)))
        return reports

    def compare(self, model: LoadedModel, source: Path, copy: Path, *, resized: bool) -> int:
        """Compare all other tensors bit for bit, and the rest of a configuration."""
        if resized:
            texts = [read_within(path.with_name(_CONFIG), MAX_JSON) for path in (source, copy)]
            rest = [_without_rows(parse(text)) for text in texts]
            refuse_changes(source, copy, [_CONFIG] if rest[0] != rest[1] else [], what="files")
        return self.inside.compare(model, source, copy, resized=resized)


def _of_rows(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What timm's configuration says of a model's rows, wherever it does."""
    found: dict[str, Any] = {}
    for key in ("num_classes", *_NAME_FIELDS):
        if config.get(key) is not None or key == "num_classes":
            found[key] = len(names) if key == "num_classes" else _named(config[key], names)
    has_names = any(name != str(row) for row, name in enumerate(names))
    if has_names and not any(key in found for key in _NAME_FIELDS):
        found["label_names"] = list(names)
    inner = config.get("pretrained_cfg")
    if isinstance(inner, Mapping):
        stated = [key for key in ("num_classes", *_NAME_FIELDS) if inner.get(key) is not None]
        told = {key: v for key, v in _of_rows({**inner}, names).items() if key in stated}
        found["pretrained_cfg"] = {**inner, **told}
    return found


def _without_rows(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what it says of a model's rows."""
    rest = {k: v for k, v in config.items() if k not in {"num_classes", *_NAME_FIELDS}}
    if isinstance(inner := rest.get("pretrained_cfg"), Mapping):
        rest["pretrained_cfg"] = _without_rows(inner)
    return rest


def _named(old: object, names: Sequence[str]) -> object:
    """Names as a list, or descriptions of them as a table; a new name describes itself."""
    if not isinstance(old, Mapping):
        return list(names)
    if set(old) <= {str(row) for row in range(len(old))}:
        return {str(row): name for row, name in enumerate(names)}
    return {name: old.get(name, name) for name in names}


def _config_beside(checkpoint: Path) -> dict[str, Any] | None:
    """The config.json that timm writes beside the weights; None if there is none of its kind."""
    try:
        config = parse(read_within(checkpoint.with_name(_CONFIG), MAX_JSON))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and "architecture" in config else None


def _stored_names(checkpoint: Path, n_categories: int) -> list[str] | None:
    """The rows' names in the config.json that timm writes beside the weights, if it has any."""
    path = checkpoint.with_name(_CONFIG)
    if (config := _config_beside(checkpoint)) is None:
        return None
    inner = config.get("pretrained_cfg")
    for key in _NAME_FIELDS:
        for table in (config, inner if isinstance(inner, dict) else {}):
            if table.get(key):
                where = f"{key} in '{path}'"
                return unique_names(names_by_number(table[key], where=where, n_rows=n_categories))
    return None


def _check_name(timm: Any, name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise ConfigError(
            f"timm has no model {name!r}{near}.",
            expected="an architecture of timm.list_models(); nothing is downloaded",
        )
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise ConfigError(
            f"timm's {architecture!r} has no pretrained tag {tag!r}{nearest(name, tags)}.",
            expected=", ".join(tags) or "no tag",
        )


def _stored_options(catalog: Catalog) -> dict[str, Any]:
    """Options of the architecture among the texts in a safetensors header."""
    found = {}
    for key, kind in _STORED_OPTIONS.items():
        if key in catalog.metadata:
            try:
                found[key] = kind(catalog.metadata[key])
            except ValueError as error:
                raise ConfigError(
                    f"the metadata of {catalog.label} has a value that cannot be used.",
                    found=f"{key} = {catalog.metadata[key]!r}",
                    expected=f"a value for {kind.__name__}",
                    remedy=f"say it: model_args={{{key!r}: …}}",
                ) from error
    return found


def _metadata_notes(catalog: Catalog) -> list[str]:
    """What else a safetensors header says of the model, to be printed."""
    if not isinstance(catalog.origin, FileLayout):
        return []
    skipped = {*_STORED_OPTIONS, "format", KEY}
    return [
        f"the checkpoint says {key}: {value[:_MAX_TEXT]}"
        for key, value in sorted(catalog.metadata.items())
        if key not in skipped and key not in {e.key for e in catalog.entries}
    ][:10]


def _classifier(module: nn.Module, name: str) -> list[str]:
    """The names of the layers that the model itself calls its classifier."""
    getter: Any = getattr(module, "get_classifier", lambda: None)
    given = getter()
    names = {id(layer): key for key, layer in module.named_modules()}
    layers = list(given) if isinstance(given, (tuple, list, nn.ModuleList)) else [given]
    found = [names[id(layer)] for layer in layers if id(layer) in names]
    if not found:
        raise ConfigError(
            f"timm:{name} does not say which layer is its classifier.",
            found=type(given).__name__,
            remedy="name it with layer='…'",
        )
    inside = [f"{found[0]}.{key}" for key in ("head", "head_dist")]
    if set(inside) <= set(names.values()):  # repvit, iformer: one module holds both, or the first
        parts = dict(module.named_modules())
        found = [key for key in inside if not isinstance(parts[key], nn.Identity)]
    return [inner_layer(module, key) for key in found]


def read_preprocessing(module: nn.Module, args: Mapping[str, Any] | None = None) -> Preprocessing:
    """Read what a model of timm says of its input."""
    data = import_optional("timm.data", extra="timm", purpose="reading what timm says of a model")
    given = dict(args or {})
    config = data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    channels = int(given.get("in_chans", channels))
    size = given.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else size
    mean, std = (_channels(config[key], channels) for key in ("mean", "std"))
    interpolation = config["interpolation"]
    stored: Any = getattr(module, "pretrained_cfg", None) or {}
    tag = stored.get("tag")
    return Preprocessing(
        size=(int(height), int(width)),
        mean=mean,
        std=std,
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bilinear",
        crop_pct=min(1.0, float(config["crop_pct"])),
        crop_mode=config["crop_mode"] if config["crop_mode"] in {"squash", "border"} else "center",
        channels=channels,
        source=f"timm pretrained_cfg{f' ({tag})' if tag else ''}",
    )


def _channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """As many values as channels; timm averages those of RGB for greyscale."""
    values = tuple(float(value) for value in values)
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
