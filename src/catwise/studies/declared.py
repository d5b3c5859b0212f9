"""What a file declares: named data, schemes, backbones and methods, and the grids over them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from catwise._configs import PaperConfig, TrainConfig, TuneConfig
from catwise._extras import import_optional
from catwise._limits import MAX_TEXT, read_within
from catwise._names import DATASETS, DRAWS, METRICS, POOLS, UNITS
from catwise._options import check_options, described, option, take_options
from catwise.errors import ConfigError, check_choice, nearest, reason_of

AXES: Final = ("data", "known", "reserve", "scheme", "backbone", "method", "seed")
"""What a cell is named by, in the order of the tables."""
BASE: Final = "base"
"""The method of every model before it is tuned."""
AS_GIVEN: Final = "as_given"
"""The scheme of a model that is not trained: the checkpoint as it is."""
VECTORS: Final = "mlp"
"""The backbone over features instead of images."""
_SECTIONS: Final = ("data", "schemes", "backbones", "methods")
_OWN: Final = ("scheme", "seed", "reserve", "metric")
"""Options of `train` that the axes of a study say."""
T = TypeVar("T")


@described
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A data set: labels from a table or in an official layout, and images or features.

    Raises:
        ConfigError: If an option is out of range, or does not go with another.
    """

    dataset: str | None = option(None, choices=DATASETS, help="A data set's official layout.")
    root: Path | None = option(None, help="Where that is.")
    labels: Path | None = option(None, help="Or a label table.")
    options: Mapping[str, Any] = option(dict, help="Of the data set's reader or `read_table`.")
    images: Path | None = option(None, help="Folder of images, if it is not that of the data set.")
    features: Path | None = option(None, help="Or features with ids, instead of images.")
    train: str = option("train", help="Name of the training split.")
    valid: str = option("valid", help="Name of the validation split, or none.")
    test: str = option("test", help="Name of the test split.")
    valid_share: float = option(
        0.0, low=0, below=1, help="Share of the training rows that becomes the validation split."
    )
    draws: str = option("keyed", choices=DRAWS, help="How unknown labels are drawn.")
    categories: tuple[str, ...] = option((), help="Only these.")
    uncertain: str | tuple[float, ...] = option(
        "unknown", help="What uncertain labels count as in training, as in `LabelPolicy`."
    )
    by: str = option("image", choices=UNITS, help="What is scored as one on the test rows.")
    pool: str = option("mean", choices=POOLS, help="How scores of its images become one.")
    groups: int = option(
        0, low=0, help="So many groups of categories by their known training labels, each scored."
    )

    def __post_init__(self) -> None:
        check_options("options of the data", self)
        if (self.dataset is None) == (self.labels is None) or (self.root and self.labels):
            raise ConfigError(
                "data come from a label table or from a data set.",
                expected="labels = FILE, or dataset = NAME with root = FOLDER",
            )
        if self.dataset is not None and self.root is None:
            raise ConfigError("the data set needs its folder.", expected="root = FOLDER")
        if self.labels is not None and (self.images is None) == (self.features is None):
            raise ConfigError(
                "a label table needs images or features.",
                expected="either images = FOLDER or features = FILE",
            )
        if self.valid_share and self.valid != "none":
            object.__setattr__(self, "valid", "none")


@described
@dataclass(frozen=True, kw_only=True)
class SchemeOptions:
    """A training scheme; without `scheme` its name says which.

    Raises:
        ConfigError: If an option is out of range.
    """

    scheme: str | None = option(None, help="A scheme of `catwise train`, or as_given.")
    options: Mapping[str, Any] = option(dict, help="Of the scheme.")
    train: Mapping[str, Any] = option(dict, help="Options of `catwise train` with this scheme.")


@described
@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """A model to train.

    Raises:
        ConfigError: If an option is out of range.
    """

    model: str = option(help="As in `catwise train`, or mlp: a network over features.")
    checkpoint: Path | None = option(None, help="Weights to start from.")
    options: Mapping[str, Any] = option(
        dict, help="Arguments of the model; layer and prefix as `load_model` takes them."
    )
    preprocessing: Mapping[str, Any] = option(dict, help="Size, mean, std and so on of the input.")
    train: Mapping[str, Any] = option(dict, help="Options of `catwise train` with this backbone.")
    hidden: tuple[int, ...] = option((128,), low=1, help="mlp: units of each hidden layer.")
    dropout: float = option(0.0, low=0, below=1, help="mlp: after each hidden layer.")

    def __post_init__(self) -> None:
        check_options("options of a backbone", self)


@described
@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """A grid: every combination of what its axes name; without an axis all that is declared.

    Raises:
        ConfigError: If an option is out of range.
    """

    data: tuple[str, ...] = option((), help="Names of data.")
    known: tuple[float, ...] = option(
        (1.0,), above=0, high=1, help="Shares of the training labels that stay known."
    )
    reserve: tuple[float, ...] = option(
        (0.0,), low=0, below=1, help="Shares of the training images kept from the backbone."
    )
    scheme: tuple[str, ...] = option((), help="Names of schemes.")
    backbone: tuple[str, ...] = option((), help="Names of backbones.")
    method: tuple[str, ...] = option((), help="Names of methods.")
    seed: tuple[int, ...] = option((0,), low=0, help="Seeds.")

    def __post_init__(self) -> None:
        check_options("options of a grid", self)


@described
@dataclass(frozen=True, kw_only=True)
class MeanOptions:
    """A further line of the table: the mean over the values of an axis.

    Raises:
        ConfigError: If an axis is unknown.
    """

    over: tuple[str, ...] = option(choices=AXES[:5], help="Axes that are averaged over.")
    where: Mapping[str, Any] = option(dict, help="Only cells with these values.")

    def __post_init__(self) -> None:
        check_options("options of a mean", self)


@described
@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """A further line of the table: the mean of the probabilities of several models.

    Raises:
        ConfigError: If an axis is unknown.
    """

    over: tuple[str, ...] = option(
        choices=("scheme", "backbone", "seed", "reserve"), help="Axes whose models are members."
    )
    where: Mapping[str, Any] = option(dict, help="Only cells with these values.")

    def __post_init__(self) -> None:
        check_options("options of an ensemble", self)


@described
@dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """A published figure, shown beside the line that it belongs to.

    Raises:
        ConfigError: If the score is not in [0, 1].
    """

    where: Mapping[str, Any] = option(
        help="Values of axes; mean or ensemble for lines that stand for several."
    )
    score: float = option(low=0, high=1, help="In the units of the metric, 0 to 1.")
    source: str = option(help="Where it is published.")

    def __post_init__(self) -> None:
        check_options("a published figure", self)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to tune, as `catwise tune` takes it."""

    tune: Mapping[str, Any]
    paper: Mapping[str, Any]

    def config(self, metric: str, seed: int) -> TuneConfig:
        """The options of `tune` for a cell."""
        return TuneConfig(metric=metric, seed=seed, paper=PaperConfig(**self.paper), **self.tune)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a file declares.

    Attributes:
        name: of the study.
        metric: that is optimised and shown first.
        level: confidence level of the intervals.
        against: the method that all others are compared with, beside the base; None for none.
        root: what relative paths start from.
        train: options of `train` for all.
        data: by name.
        schemes: by name.
        backbones: by name.
        methods: by name.
        grids: whose cells are run.
        means: further lines.
        ensembles: further lines.
        published: figures.
    """

    name: str
    root: Path
    metric: str = "average_precision"
    level: float = 0.95
    against: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, DataOptions]
    schemes: Mapping[str, SchemeOptions]
    backbones: Mapping[str, BackboneOptions]
    methods: Mapping[str, Method]
    grids: tuple[GridOptions, ...]
    means: tuple[MeanOptions, ...] = ()
    ensembles: tuple[EnsembleOptions, ...] = ()
    published: tuple[PublishedOptions, ...] = ()

    def place(self, path: Path) -> Path:
        """A path of the file, from the root."""
        return path if path.is_absolute() else self.root / path

    def training(self, scheme: str, backbone: str) -> dict[str, Any]:
        """The options of `train` for a scheme and a backbone, the more special ones last."""
        own = self.schemes[scheme].train, self.backbones[backbone].train
        return {**self.train, **own[1], **own[0]}


def read_study(path: str | Path, root: str | Path | None = None) -> Study:
    """Read the declaration of a study.

    Args:
        path: a TOML or YAML file.
        root: what relative paths in it start from; None: the file's own folder.

    Raises:
        ConfigError: If the file cannot be read, or declares what is not possible; the place in the
            file is named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "study.toml")
    ...     _ = file.write_text('''
    ... [data.cats]
    ... labels = "cats.csv"
    ... features = "cats.npz"
    ... options = {encoding = "nan", id_column = "id", split_column = "split"}
    ... [schemes.asl]
    ... [backbones.neck]
    ... model = "mlp"
    ... [methods.default]
    ... ''')
    ...     study = read_study(file)
    >>> study.name, study.grids[0].scheme
    ('study', ('asl',))
    """
    file = Path(path)
    table = read_declaration(file)
    return make_study(table, file.parent if root is None else Path(root), file.stem)


def read_declaration(file: Path) -> Any:
    """The table of a TOML or YAML file."""
    try:
        text = read_within(file, MAX_TEXT).decode("utf-8-sig")
        if file.suffix.lower() in {".yaml", ".yml"}:
            yaml = import_optional("yaml", extra="study", purpose="a study in YAML")
            return yaml.safe_load(text)
        return _toml().loads(text)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    except Exception as error:
        if type(error).__name__.endswith("YAMLError") or "yaml" in type(error).__module__:
            raise _unreadable(file, error) from error
        raise


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    return import_optional("tomli", extra="study", purpose="a study in TOML")


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot read a study from '{file}'.",
        found=reason_of(error),
        expected="a TOML file, or a YAML file whose name ends in .yaml",
    )


_TOP: Final = ("name", "metric", "level", "against", "train", "grid", "mean", "ensemble",
               "published", *_SECTIONS)  # fmt: skip


def make_study(table: Any, root: Path, name: str = "study") -> Study:
    """A study of a table of plain values; see `read_study`."""
    if not isinstance(table, Mapping):
        raise ConfigError("a study is a table.", found=type(table).__name__)
    for key in table:
        if key not in _TOP:
            raise ConfigError(
                f"a study has no section {key!r}{nearest(str(key), _TOP)}.",
                expected=", ".join(_TOP),
            )
    train = _train_options(table.get("train", {}), "[train]")
    methods = {
        key: _method(one, f"[methods.{key}]") for key, one in _named(table, "methods").items()
    }
    if BASE in methods:
        raise ConfigError(
            f"{BASE!r} is the model before it is tuned; give the method another name."
        )
    study = Study(
        name=str(table.get("name", name)),
        root=root,
        metric=str(table.get("metric", "average_precision")),
        level=float(table.get("level", 0.95)),
        against=table.get("against"),
        train=train,
        data=_tables(DataOptions, table, "data"),
        schemes=_schemes(table),
        backbones=_backbones(table),
        methods=methods,
        grids=_grids(table),
        means=_listed(MeanOptions, table, "mean"),
        ensembles=_listed(EnsembleOptions, table, "ensemble"),
        published=_listed(PublishedOptions, table, "published"),
    )
    return _checked(study)


def _named(table: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section of named tables; there must be one at least."""
    found = table.get(section)
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(
            f"the study declares no {section}.",
            expected=f"a table [{section}.NAME] for each",
        )
    return found


def _tables(kind: type[T], table: Mapping[str, Any], section: str) -> dict[str, T]:
    return {
        str(key): _built(kind, one, f"[{section}.{key}]")
        for key, one in _named(table, section).items()
    }


def _built(kind: type[T], table: Any, where: str) -> T:
    """A dataclass of a table; errors name the place in the file."""
    given = take_options(kind, {} if table is None else table, where)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and item.name not in given:
            raise ConfigError(f"{where} lacks {item.name!r}.")
    try:
        return kind(**given)
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error.what}",
            found=error.found,
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def _listed(kind: type[T], table: Mapping[str, Any], section: str) -> tuple[T, ...]:
    """A list of tables of the file."""
    found = table.get(section, [])
    if not isinstance(found, (list, tuple)):
        raise ConfigError(f"[[{section}]] is not a list of tables.", found=type(found).__name__)
    return tuple(_built(kind, one, f"[[{section}]] {i + 1}") for i, one in enumerate(found))


def _train_options(table: Any, where: str) -> dict[str, Any]:
    """Options of `train`, checked, without those that axes say."""
    given = take_options(TrainConfig, table, where, leave_out=_OWN)
    try:
        TrainConfig(**given)
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error.what}", found=error.found, expected=error.expected
        ) from error
    return given


def _schemes(table: Mapping[str, Any]) -> dict[str, SchemeOptions]:
    from catwise.training.schemes import scheme_options

    made = {}
    for name, one in _tables(SchemeOptions, table, "schemes").items():
        where = f"[schemes.{name}]"
        kind = one.scheme or name
        train = _train_options(one.train, f"{where} train")
        made[name] = dataclasses.replace(one, scheme=kind, train=train)
        if kind != AS_GIVEN:
            scheme_options(kind, one.options)
    return made


def _backbones(table: Mapping[str, Any]) -> dict[str, BackboneOptions]:
    return {
        name: dataclasses.replace(one, train=_train_options(one.train, f"[backbones.{name}] train"))
        for name, one in _tables(BackboneOptions, table, "backbones").items()
    }


def _method(table: Any, where: str) -> Method:
    """The options of `tune`, those of the preset `paper` beside them."""
    table = {} if table is None else table
    names = {item.name for item in dataclasses.fields(PaperConfig)} - {"operators"}
    paper = {key: value for key, value in dict(table).items() if key in names}
    others = {key: value for key, value in dict(table).items() if key not in names}
    given = take_options(TuneConfig, others, where, leave_out=("seed", "metric"))
    made = Method(tune=given, paper=take_options(PaperConfig, paper, where))
    try:
        made.config("average_precision", 0)
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error.what}", found=error.found, expected=error.expected
        ) from error
    return made


def _grids(table: Mapping[str, Any]) -> tuple[GridOptions, ...]:
    """The grids, with all that is declared where an axis is not named."""
    own = {"data": "data", "scheme": "schemes", "backbone": "backbones", "method": "methods"}
    grids = _listed(GridOptions, table, "grid") or (GridOptions(),)
    found = []
    for i, grid in enumerate(grids):
        filled = {}
        for axis, section in own.items():
            there = _named(table, section)
            for name in getattr(grid, axis):
                if name not in there:
                    raise ConfigError(
                        f"[[grid]] {i + 1}: {section} declare no {name!r}{nearest(name, there)}.",
                        expected=", ".join(there),
                    )
            filled[axis] = getattr(grid, axis) or tuple(map(str, there))
        found.append(dataclasses.replace(grid, **filled))
    return tuple(found)


def _checked(study: Study) -> Study:
    """What only the whole can tell."""
    check_choice("metric", study.metric, METRICS)
    if not 0 < study.level < 1:
        raise ConfigError("the level is out of range.", found=f"{study.level:g}", expected="(0, 1)")
    if study.against is not None:
        check_choice("against", study.against, tuple(study.methods))
    for kind in ("means", "ensembles", "published"):
        for one in getattr(study, kind):
            for axis in one.where:
                check_choice(f"{kind}: an axis of where", axis, AXES)
    for name, scheme in study.schemes.items():
        if scheme.scheme != AS_GIVEN:
            for backbone in study.backbones:
                TrainConfig(
                    scheme=str(scheme.scheme),
                    scheme_options=scheme.options,
                    **study.training(name, backbone),
                )
    return study
