"""`catwise audit` on data sets, its findings, and known prevalences."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from catwise._names import DATASETS
from catwise.cli import main
from catwise.cli.reader_options import option_value
from catwise.data import readers
from catwise.errors import CategoryError, ConfigError, IdError, LabelError

OBSERVATIONS = ("No Finding", "Edema", "Fracture")
CHEXPERT = ["--dataset", "chexpert", "--root", "chexpert"]
NAMED = [part for name in OBSERVATIONS for part in ("--option", f"categories={name}")]
ROWS = (
    ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "1.0", "", "-1.0"),
    ("train/patient00001/study1/view2_lateral.jpg", "Lateral", "", "0.0", "0.0"),
    ("train/patient00002/study1/view1_frontal.jpg", "Frontal", "", "1.0", "1.0"),
)
TABLE = "id,patient,part,cat,dog,Cat\na,p,train,1,0,1\nb,p,test,0,,0\nc,q,test,,0,\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chexpert").mkdir()
    lines = [",".join(("Path", "Frontal/Lateral", *OBSERVATIONS)), *map(",".join, ROWS)]
    Path("chexpert", "train.csv").write_text("\n".join(lines) + "\n")
    Path("table.csv").write_text(TABLE)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["audit", *arguments])


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def table(*arguments: str) -> list[str]:
    return ["--labels", "table.csv", "--encoding", "nan", "--id-column", "id", *arguments]


def test_the_names_of_data_sets_are_the_readers() -> None:
    """What --dataset offers is what the library reads."""
    tables = {"read_jsonl_table", "read_label_lists", "read_table"}  # what --labels reads
    assert [f"read_{name}" for name in DATASETS] == [
        name for name in readers.__all__ if name not in tables
    ]


def test_a_data_set() -> None:
    """Categories, splits, counts and notes are those of the reader."""
    found = document(*CHEXPERT, *NAMED)
    assert [row["category"] for row in found["categories"]] == list(OBSERVATIONS)
    assert [row["uncertain"] for row in found["categories"]] == [0, 0, 1]
    assert found["dataset"]["splits"] == {"train": 3}
    assert found["dataset"]["counts"]["patients"] == 2
    assert "-1 is uncertain" in found["dataset"]["notes"][0]
    about = found["inputs"]["labels"]
    assert (about["dataset"], about["path"]) == ("chexpert", "chexpert")
    assert about["options"][0] == "categories=No Finding"
    assert found["selection"] is None


def test_people_are_told_what_the_reader_met() -> None:
    """The notes and counts of the reader stand below the table."""
    printed = run(*CHEXPERT, *NAMED).stdout
    assert "3 rows, 3 categories" in printed
    assert "-1 is uncertain" in printed
    assert "images_in_tables: train 3" in printed


def test_options_and_splits_go_to_the_reader() -> None:
    """--option, --split and --category choose what is read."""
    found = document(*CHEXPERT, *NAMED, "--option", "views=frontal", "--split", "train")
    assert found["summary"]["n_rows"] == 2
    found = document(*CHEXPERT, *NAMED, "--option", "blanks=negative")
    assert found["summary"]["n_unknown"] == 0
    found = document(*CHEXPERT, *NAMED, "--category", "Edema")
    assert [row["category"] for row in found["categories"]] == ["Edema"]


def test_lists_of_labels() -> None:
    """Tables of lists, and JSON lines of every layout, are tables too."""
    Path("lists.jsonl").write_text(
        '{"id": "a", "positive": ["cat"], "split": "x"}\n{"id": "b", "split": "y"}\n'
    )
    lists = ["--labels", "lists.jsonl", "--layout", "lists", "--others", "negative"]
    found = document(*lists, "--split-column", "split")
    assert found["categories"][0]["negative"] == 1
    assert found["dataset"]["splits"] == {"x": 1, "y": 1}
    assert document(*lists, "--split-column", "split", "--split", "y")["summary"]["n_rows"] == 1
    Path("wide.jsonl").write_text('{"id": "a", "cat": 1}\n{"id": "b", "cat": null}\n')
    wide = document("--labels", "wide.jsonl", "--encoding", "nan", "--id-column", "id")
    assert (wide["summary"]["n_known"], wide["summary"]["n_rows"]) == (1, 2)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("viws=frontal", "did you mean 'views'"),
        ("views=frontl", "did you mean 'frontal'"),
        ("views", "NAME=VALUE"),
        ("tables=train.csv", "NAME=VALUE or none"),
        ("root=x", "expected: split, views"),
    ],
)
def test_options_that_are_not_possible(option: str, words: str) -> None:
    """One error that says what the reader takes."""
    result = run(*CHEXPERT, "--option", option)
    assert result.exit_code == ConfigError.exit_code
    assert words in result.stderr.replace("  ", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --labels FILE or --dataset"),
        ([*CHEXPERT, "--labels", "table.csv"], "either --labels FILE or --dataset"),
        (["--dataset", "chexpert"], "needs --root"),
        (["--labels", "table.csv", "--root", "x"], "belong to --dataset"),
        (["--labels", "table.csv", "--option", "a=b"], "belong to --dataset"),
        (["--labels", "table.csv", "--split", "x"], "needs --split-column"),
        ([*CHEXPERT, "--split-column", "x"], "belongs to --labels"),
        ([*CHEXPERT, "--encoding", "nan"], "--encoding belongs to --labels"),
        ([*CHEXPERT, "--layout", "long"], "--layout belongs to --labels"),
        ([*CHEXPERT, "--others", "unknown"], "belong to --layout lists"),
        (["--labels", "table.csv", "--layout", "lists", "--encoding", "nan"], "does not belong to"),
        (["--dataset", "chexprt", "--root", "x"], "is not one of"),
    ],
)
def test_wrong_use(arguments: list[str], words: str) -> None:
    """Options that do not go together are refused before anything is read."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("texts", "annotation", "value"),
    [
        (["2017"], "Literal[2014, 2017]", 2017),
        (["true"], "bool", True),
        (["no"], "bool", False),
        (["0.5"], "float | None", 0.5),
        (["none"], "float | None", None),
        (["none"], "Literal['photo'] | None", None),
        (["2014"], "str", "2014"),
        (["columns"], "Storage", "columns"),
        (["all"], "Literal['all'] | Sequence[str]", "all"),
        (["all", "b"], "Literal['all'] | Sequence[str]", ["all", "b"]),
        (["a"], "Sequence[str]", ["a"]),
        (["a=b=c", "d=e"], "Mapping[str, str] | None", {"a": "b=c", "d": "e"}),
        (["x"], "str | os.PathLike[str] | None", "x"),
    ],
)
def test_values_of_options(texts: list[str], annotation: str, value: object) -> None:
    """Texts become what the reader's annotation says."""
    found = option_value("it", texts, annotation)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("texts", "annotation"),
    [
        (["2015"], "Literal[2014, 2017]"),
        (["maybe"], "bool"),
        (["half"], "float | None"),
        (["a", "b"], "str"),
        (["none"], "bool"),
    ],
)
def test_values_of_no_meaning(texts: list[str], annotation: str) -> None:
    """What is nothing of the type is refused."""
    with pytest.raises(ConfigError, match="'it'"):
        option_value("it", texts, annotation)


@pytest.mark.parametrize("reader", [f"read_{name}" for name in DATASETS])
def test_every_option_of_every_reader_has_a_value(reader: str) -> None:
    """Each option has an annotation by which some text is a value."""
    for option in list(inspect.signature(getattr(readers, reader)).parameters.values())[1:]:
        texts = [
            "none",
            "true",
            "0.5",
            "a=b",
            *re.findall(r"Literal\[['\"]?(\w+)", option.annotation),
        ]
        assert any(accepts(text, option.annotation) for text in texts), option


def accepts(text: str, annotation: str) -> bool:
    try:
        option_value("it", [text], annotation)
    except ConfigError:
        return False
    return True


def test_findings_of_a_table() -> None:
    """Copies, names alike and patients in two splits are told, to people and machines."""
    arguments = table("--group-column", "patient", "--split-column", "part")
    found = {row["finding"]: row["examples"] for row in document(*arguments)["findings"]}
    assert found == {
        "never_positive": [["dog"]],
        "same_labels": [["cat", "Cat"]],
        "names_alike": [["cat", "Cat"]],
        "groups_in_two_splits": [["p"]],
    }
    printed = run(*arguments).stdout
    assert "3 rows, 3 categories (test 2, train 1)" in printed
    assert "groups_in_two_splits: 'p'." in printed
    assert "same_labels: 'cat' = 'Cat'." in printed


def test_splits_of_a_long_table() -> None:
    """Splits are those of the images; one in two splits is refused."""
    rows = "id,patient,part,category,value\na,p,x,cat,1\na,p,x,dog,0\nb,p,y,cat,0\n"
    Path("long.csv").write_text(rows)
    arguments = ["--labels", "long.csv", "--encoding", "nan", "--layout", "long"]
    arguments += ["--group-column", "patient", "--split-column", "part"]
    found = document(*arguments)
    assert found["dataset"]["splits"] == {"x": 1, "y": 1}
    assert "groups_in_two_splits" in {row["finding"] for row in found["findings"]}
    Path("long.csv").write_text(rows + "b,p,x,dog,1\n")
    result = run(*arguments)
    assert result.exit_code == IdError.exit_code
    assert "'b': 'y' in 'long.csv', line 4 and 'x' in 'long.csv', line 5" in result.stderr


def test_unknown_together() -> None:
    """Categories that are unknown in the same rows are shown as sets and pairs."""
    rows = [f"{i},{i % 2 or ''},{i % 2 or ''},{1 if i % 2 or i < 4 else ''}" for i in range(100)]
    Path("together.csv").write_text("id,a,b,c\n" + "\n".join(rows) + "\n")
    arguments = ["--labels", "together.csv", "--encoding", "nan", "--id-column", "id"]
    found = document(*arguments)["unknown_together"]
    assert found["same"] == [["a", "b"]]
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("a", "c")]
    printed = run(*arguments).stdout
    assert "unknown in exactly the same rows: 'a', 'b'" in printed
    assert "the strongest of 1 pair beyond chance in 100 rows" in printed


def prevalences(*given: str) -> dict[str, dict[str, Any]]:
    more = [part for text in given for part in ("--prevalence", text)]
    rows = document("--labels", "many.csv", "--encoding", "nan", *more)["selection"]
    return {row["category"]: row for row in rows}


def write_many() -> None:
    """300 positives, 300 negatives and 400 unknown of each of two categories."""
    rows = ["1,1"] * 300 + ["0,0"] * 300 + ["'',''".replace("'", "")] * 400
    Path("many.csv").write_text("cat,a=b\n" + "\n".join(rows) + "\n")


def test_prevalence() -> None:
    """The audit compares what is known with what is known from elsewhere."""
    write_many()
    rows = prevalences("cat=0.4")
    assert rows["cat"]["verdict"] == "positives_favoured"
    assert rows["cat"]["known_given_positive"] == pytest.approx(0.75)
    assert rows["a=b"]["verdict"] == "not_identified"
    assert prevalences("a=b=0.5")["a=b"]["verdict"] == "as_at_random"
    printed = run("--labels", "many.csv", "--encoding", "nan", "--prevalence", "cat=0.4").stdout
    assert "Positives became known more often than negatives." in printed
    assert "not_identified" not in printed


def test_prevalence_of_files() -> None:
    """A table or a JSON file; what is given later counts; a blank is not given."""
    write_many()
    Path("p.csv").write_text("category,prevalence\ncat,0.4\na=b,\n")
    Path("p.json").write_text('{"a=b": 0.5}')
    rows = prevalences("p.csv", "p.json")
    assert (rows["cat"]["prevalence"], rows["a=b"]["prevalence"]) == (0.4, 0.5)
    assert prevalences("p.csv")["a=b"]["prevalence"] is None
    assert prevalences("p.csv", "cat=0.7")["cat"]["prevalence"] == 0.7


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("cat=1.5", ConfigError.exit_code, "inside (0, 1)"),
        ("cat=x", ConfigError.exit_code, "'x' (--prevalence cat=x)"),
        ("cat", ConfigError.exit_code, "NAME=VALUE or a file"),
        ("dgo=0.5", CategoryError.exit_code, "did you mean 'dog'"),
        ("bad.csv", ConfigError.exit_code, "line 3, column 'prevalence'"),
        (
            "twice.csv",
            ConfigError.exit_code,
            "line 3, column 'prevalence': duplicate category 'cat'",
        ),
        ("none.csv", LabelError.exit_code, "no column 'prevalence'"),
        ("bad.json", ConfigError.exit_code, "cannot read prevalences"),
        ("list.json", ConfigError.exit_code, "holds no prevalences"),
        ("true.json", ConfigError.exit_code, "True"),
    ],
)
def test_prevalence_faults(given: str, code: int, words: str) -> None:
    """What is no share, no file or no category is one error that names the place."""
    Path("bad.csv").write_text("category,prevalence\ncat,0.4\ndog,many\n")
    Path("twice.csv").write_text("category,prevalence\ncat,0.4\ncat,0.5\n")
    Path("none.csv").write_text("category,share\ncat,0.4\n")
    Path("bad.json").write_text("{")
    Path("list.json").write_text("[1]")
    Path("true.json").write_text('{"cat": true}')
    result = run(*table("--ignore-column", "patient", "--ignore-column", "part"),
                 "--prevalence", given)  # fmt: skip
    assert (result.exit_code, words in result.stderr) == (code, True), result.output


def test_metrics_speak_of_the_labelled_part() -> None:
    """It is said wherever labels are unknown, and only there."""
    words = "metrics speak of the labelled part only"
    assert words in run(*table("--category", "cat")).stdout
    Path("full.csv").write_text("cat\n1\n0\n")
    assert words not in run("--labels", "full.csv", "--encoding", "complete").stdout


def test_a_table_without_header() -> None:
    """It is refused with the option to give; with it no row is lost."""
    Path("bare.csv").write_text("a.jpg,1,\nb.jpg,0,1\n")
    options = ("--labels", "bare.csv", "--encoding", "nan")
    found = run(*options)
    assert found.exit_code == LabelError.exit_code
    assert "looks like data" in found.output
    assert "--no-header" in found.output
    found = run(*options, "--no-header", "--id-column", "1")
    assert found.exit_code == 0, found.output
    assert run("--dataset", "chexpert", "--root", "chexpert", "--no-header").exit_code == 2


def test_the_end_can_be_copied() -> None:
    """The options read the same labels again; the command is that of fix, with them."""
    Path("dash.csv").write_text("a,1\nb,0\n")
    given = ["--labels", "dash.csv", "--no-header", "--id-column", "1", "--id-suffix=-x"]
    given += ["--code", "1=positive", "--code", "0=negative", "--rename", "2=my cat"]
    told = document(*given)["next"]
    assert shlex.split(told["options"]) == [
        "--labels", "dash.csv", "--code", "1=positive", "--code", "0=negative", "--id-column", "1",
        "--id-suffix=-x", "--rename", "2=my cat", "--no-header",
    ]  # fmt: skip
    again = document(*shlex.split(told["options"]))
    assert again["categories"] == document(*given)["categories"]
    assert again["categories"][0]["category"] == "my cat"
    assert told["fix"] == (
        f"catwise fix --model KIND:NAME --checkpoint FILE --images DIR {told['options']} --out DIR"
    )
    printed = run(*given).output
    assert printed.splitlines()[-2:] == [
        f"read with: {told['options']}",
        f"next:      {told['fix']}",
    ]


def test_the_end_of_a_data_set() -> None:
    """Its name, root and options, without the split that fix does not take."""
    told = document(*CHEXPERT, *NAMED, "--split", "train")["next"]
    assert shlex.split(told["options"]) == [*CHEXPERT, *NAMED]
    command = shlex.split(told["fix"])
    result = CliRunner().invoke(main, [*command[1:], "--dry-run"])
    assert "the kind of model 'KIND'" in result.output  # all else was understood
    assert result.exit_code == ConfigError.exit_code


def test_tables_of_data_sets_are_recognised() -> None:
    """Read as a table, one of CheXpert is told of as such, also where it cannot be read."""
    head = "Path,Sex,Enlarged Cardiomediastinum,Pleural Effusion\n"
    Path("chexpert/valid.csv").write_text(
        f"{head}train/patient00001/study1/view1_frontal.jpg,F,1,0\n"
    )
    line = ["--labels", "chexpert/valid.csv", "--encoding", "nan", "--id-column", "Path"]
    hint = "looks like a table of the data set chexpert: --dataset chexpert --root chexpert"
    assert hint in run(*line).output  # Sex is no label
    assert hint in run(*line, "--ignore-column", "Sex").output
    assert document(*line, "--ignore-column", "Sex")["next"]["dataset"] is not None
    assert (
        document(*table("--ignore-column", "part", "--ignore-column", "patient"))["next"]["dataset"]
        is None
    )


def test_mostly_positive_labels_ask_for_a_prevalence() -> None:
    """Beyond nine in ten, and only where there are negatives too."""
    for n_negative, asked in ((1, True), (2, True), (3, False)):
        rows = [f"i{row},{int(row >= n_negative)}" for row in range(22)]
        Path("t.csv").write_text("\n".join(["id,cat", *rows]) + "\n")
        notes = " ".join(
            document("--labels", "t.csv", "--encoding", "nan", "--id-column", "id")["notes"]
        )
        assert ("--prevalence NAME=SHARE" in notes) == asked
