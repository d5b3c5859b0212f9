"""Records as CSV, as plain JSON values and as tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from catwise._csv import rows_csv
from catwise._json import json_ready
from catwise._text import NOTHING, clean, count, gain, interval, plural, score
from catwise.reporting.summary import (
    gain_interval,
    is_loss,
    metric_label,
    outcome_of,
    outcome_text,
    scored_on,
)
from catwise.reporting.terminal import Grid, TerminalTable
from catwise.tuning.account.documents import Record

Row: TypeAlias = Mapping[str, Any]

RECORD_COLUMNS: Final = Record.columns()
"""What every record of a run holds, in the order of `records.csv`."""

_SIGNS: Final = ("positive", "negative")
_STYLES: Final = {"better": "green", "worse": "red"}
_MANY: Final = (
    "among many categories some intervals leave out 0 by chance: better and worse are "
    "at a false discovery rate of 5%"
)


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of a run as CSV, `RECORD_COLUMNS` first; see :func:`rows_csv`."""
    return rows_csv(records, RECORD_COLUMNS)


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: its heading.
        cell: what a row has there.
        key: of what it is sorted by.
        numeric: whether it holds numbers.
    """

    name: str
    cell: Callable[[Row], object]
    key: str
    numeric: bool = True


def text(name: str, key: str = "") -> Column:
    """A column of texts, by default under the heading of its key."""
    key = key or name
    return Column(name, lambda row: row.get(key) or "", key, numeric=False)


def numbers(write: Callable[[object], str], *keys: str, **headed: str) -> list[Column]:
    """Columns of numbers, as `write` writes them: {heading: key}, or under the name of the key."""

    def column(name: str, key: str) -> Column:
        return Column(name, lambda row: write(row.get(key)), key)

    return [column(*one) for one in ({key: key for key in keys} | headed).items()]


def bounds(name: str, key: str, write: Callable[[object, object], str] = interval) -> Column:
    """A column of intervals, from `key`_low to `key`_high."""
    low, high = f"{key}_low", f"{key}_high"
    return Column(name, lambda row: write(row.get(low), row.get(high)), low)


def lay_out(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    title: str | None = None,
    limit: int = 0,
    importance: str = "",
    style: Callable[[Row], str] = lambda _: "",
    order: Callable[[Sequence[Row]], Sequence[Row]] = lambda rows: rows,
    rest: str = "categories",
    note: Callable[[Sequence[Row]], str] = lambda _: "",
) -> Grid:
    """Rows as a table of texts; names stay as they are, but for controls.

    Args:
        rows: one mapping a row.
        columns: in order.
        title: what stands above.
        limit: at most so many rows; 0 shows all.
        importance: key of the numbers whose largest, of either sign, are shown if not all are;
            without one the first are.
        style: of a row, such as "green".
        order: of the rows that are shown.
        rest: what the rows are, to say how many are not shown.
        note: a line below, from the rows that are shown.
    """
    shown = order(_largest(rows, limit, importance) if 0 < limit < len(rows) else rows)
    left = len(rows) - len(shown)
    lines = [f"{left:,} further {rest} are not shown" if left else "", note(shown)]
    return Grid(
        [one.name for one in columns],
        [one.numeric for one in columns],
        [[clean(one.cell(row)) for one in columns] for row in shown],
        [style(row) for row in shown],
        title,
        list(filter(None, lines)),
    )


def build_table(rows: Sequence[Row], columns: Sequence[Column], **how: Any) -> TerminalTable:
    """Rows as a table for a terminal; names are shown as they are, never as markup.

    Arguments are those of :func:`lay_out`.
    """
    return as_terminal(lay_out(rows, columns, **how))


def as_terminal(grid: Grid) -> TerminalTable:
    """A table of texts for a terminal, however wide that is."""
    return TerminalTable(grid)


def as_markdown(grid: Grid) -> str:
    r"""A table of texts in Markdown (GitHub's), the title in bold above it.

    >>> grid = Grid(["name", "AP"], [False, True], [["a|b", "0.5"]], [""], None, [])
    >>> print(as_markdown(grid), end="")
    | name | AP |
    |---|---:|
    | a\|b | 0.5 |
    """
    lines = [f"**{_markdown(grid.title)}**", ""] if grid.title else []
    rules = ["---:" if numeric else "---" for numeric in grid.numeric]
    lines += [f"| {' | '.join(map(_markdown, grid.headings))} |", f"|{'|'.join(rules)}|"]
    lines += [f"| {' | '.join(map(_markdown, cells))} |" for cells in grid.cells]
    lines += [text for line in grid.lines for text in ("", _markdown(line))]
    return "\n".join(lines) + "\n"


def as_latex(grid: Grid) -> str:
    r"""A table of texts in LaTeX, with the rules of the package booktabs.

    >>> grid = Grid(["name", "AP"], [False, True], [["a_b", "0.5"]], [""], None, [])
    >>> print(as_latex(grid), end="")
    \begin{tabular}{lr}
    \toprule
    name & AP \\
    \midrule
    a\_b & 0.5 \\
    \bottomrule
    \end{tabular}
    """
    lines = [f"% {clean(line)}" for line in (grid.title, *grid.lines) if line]
    kinds = "".join("r" if numeric else "l" for numeric in grid.numeric)
    lines += [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    lines += [" & ".join(map(_latex, grid.headings)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_latex, cells)) + r" \\" for cells in grid.cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_MARKDOWN: Final = str.maketrans(
    {letter: f"\\{letter}" for letter in "\\`*_[]|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)
_LATEX: Final = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\N{MINUS SIGN}": "$-$",
        "\N{PLUS-MINUS SIGN}": r"$\pm$",
        "\N{RIGHTWARDS ARROW}": r"$\to$",
        "\N{EN DASH}": "--",
    }
)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _largest(rows: Sequence[Row], limit: int, key: str) -> Sequence[Row]:
    """The rows with the largest numbers, in their order."""

    def size(position: int) -> tuple[float, int]:
        value = json_ready(rows[position].get(key)) if key else None
        number = abs(value) if isinstance(value, (int, float)) else -1.0
        return -number, position

    return [rows[i] for i in sorted(sorted(range(len(rows)), key=size)[:limit])]


def records_table(
    records: Sequence[Row], *, limit: int = 40, title: str = "Categories"
) -> TerminalTable:
    """The records of a run as a table for a terminal: what the rows that chose say.

    Green is a gain that is shown, red a loss; what was kept has no colour.

    Args:
        records: as in `TuneResult.records`; the known labels shown are the validation labels, or
            the training labels where there are no others.
        limit: at most so many rows, those with the largest gain or loss; 0 shows all.
        title: what stands above; it says which rows the scores are of.
    """
    return as_terminal(records_grid(records, limit=limit, title=title))


def records_grid(records: Sequence[Row], *, limit: int = 0, title: str | None = None) -> Grid:
    """The table of `records_table`, in any form."""
    raw = any(r.get("after") is None and r.get("selected_on") is not None for r in records)
    columns = [
        text("category"),
        text("status"),
        *numbers(score, "before", "after"),
        *(numbers(score, raw="selected_on") if raw else []),
        *numbers(gain, "gain"),
        Column("interval", gain_interval, "gain_low"),
        Column("+ / −", _known, ""),
        text("why", "reason"),
    ]

    def style(record: Row) -> str:
        skipped = record.get("status") == "skipped"
        return "dim" if skipped else _STYLES.get(outcome_of(record), "")

    return lay_out(records, columns, title=title, limit=limit, importance="gain", style=style)


def _known(record: Row) -> str:
    """Known positives and negatives of the data that scored."""
    where = "train" if record.get("n_positive_valid") is None else "valid"
    return " / ".join(count(record.get(f"n_{sign}_{where}")) for sign in _SIGNS)


def by_difference(rows: Iterable[Row], metric: object) -> list[Row]:
    """Categories of an evaluation, what became best first, those without a difference last."""
    sign = 1 if is_loss(metric) else -1

    def place(row: Row) -> tuple[bool, float]:
        value = json_ready(row.get("difference"))
        return value is None, 0.0 if value is None else sign * value

    return sorted(rows, key=place)


def run_table(document: Mapping[str, Any], *, limit: int = 40) -> TerminalTable:
    """The categories of a run as a table for a terminal: on test rows where there are any.

    Args:
        document: as :func:`~catwise.reporting.run_document` gives it.
        limit: at most so many rows; 0 shows all.
    """
    if document.get("evaluation"):
        return differences_table(document["evaluation"], limit=limit)
    where, role = scored_on(document)
    return records_table(document["records"], limit=limit, title=f"On {where}, which {role}")


def differences_table(
    evaluation: Mapping[str, Any], *, limit: int = 40, title: str | None = None
) -> TerminalTable:
    """Both heads on the same rows, category by category, as a table for a terminal.

    Args:
        evaluation: as in `TuneResult.evaluation`.
        limit: at most so many rows, those with the largest difference; 0 shows all.
        title: what stands above; by default that these are test rows.
    """
    return as_terminal(differences_grid(evaluation, limit=limit, title=title))


def differences_grid(
    evaluation: Mapping[str, Any], *, limit: int = 0, title: str | None = None
) -> Grid:
    """The table of `differences_table`, in any form."""
    if title is None:
        rows = plural(int(evaluation["n_rows"]), "test row")
        title = f"{metric_label(evaluation['metric'])} on {rows}, which chose nothing"
    return lay_out(
        evaluation["categories"],
        [
            text("category"),
            *numbers(score, "before", "after"),
            *numbers(gain, "difference"),
            bounds(f"{evaluation['level']:.0%} interval", "difference"),
            *numbers(count, positives="n_positive"),
            Column("shows", outcome_text, "outcome", numeric=False),
        ],
        title=title,
        limit=limit,
        importance="difference",
        style=lambda row: _STYLES.get(str(row.get("outcome")), ""),
        order=lambda shown: by_difference(shown, evaluation["metric"]),
        note=lambda shown: _MANY if any(map(_is_one_of_many, shown)) else "",
    )


def _is_one_of_many(row: Row) -> bool:
    """Whether its interval alone would show a difference, which among many it does not."""
    low, high = row.get("difference_low"), row.get("difference_high")
    if low is None or high is None or low <= 0 <= high:
        return False
    return row.get("outcome") == "no_difference"


def evaluation_table(
    rows: Sequence[Row], metrics: Sequence[str], *, limit: int = 40, title: str = "Evaluation"
) -> TerminalTable:
    """Metrics per category as a table for a terminal, one or two of them with intervals.

    Args:
        rows: as `Evaluation.records()` gives them.
        metrics: the metrics to show, in order.
        limit: at most so many rows; 0 shows all.
        title: what stands above.
    """
    columns = [text("category")]
    for metric in metrics:
        columns += numbers(score, metric)
        if len(metrics) < 3:
            columns.append(bounds("interval", metric, _range))
    if any(row.get("interval_reason") for row in rows):
        columns.append(text("note", "interval_reason"))
    return build_table(rows, columns, title=title, limit=limit)


def _range(low: object, high: object) -> str:
    """The interval of a score."""
    return NOTHING if low is None or high is None else f"{score(low)} to {score(high)}"


def means_table(means: Mapping[str, Row], *, title: str = "Means") -> TerminalTable:
    """The means of an evaluation as a table for a terminal; each says how much it covers.

    Args:
        means: as `Evaluation.to_dict()["means"]` gives them.
        title: what stands above.
    """
    columns = [
        text("metric"),
        *numbers(score, "macro"),
        bounds("interval", "macro", _range),
        *numbers(score, "micro"),
        *numbers(count, categories="n_categories"),
    ]
    return build_table(
        [{"metric": name, **mean} for name, mean in means.items()], columns, title=title
    )


def comparison_table(rows: Sequence[Row], *, metric: str = "mean AP", title: str) -> TerminalTable:
    """Several heads on the same test data as a table for a terminal.

    Args:
        rows: dicts with name, score, gain, gain_low, gain_high, n_categories, seconds.
        metric: what the score is.
        title: what stands above.
    """
    columns = [
        text("head", "name"),
        *numbers(score, **{metric: "score"}),
        *numbers(gain, "gain"),
        bounds("interval", "gain"),
        *numbers(count, categories="n_categories"),
        *numbers(lambda value: NOTHING if value is None else f"{value:.1f}", "seconds"),
    ]
    return build_table(rows, columns, title=title)


def audit_table(rows: Sequence[Row], *, limit: int = 0, title: str) -> TerminalTable:
    """What is known of each category as a table for a terminal.

    Args:
        rows: as `LabelAudit.rows` gives them.
        limit: at most so many rows, those with the most known labels; 0 shows all.
        title: what stands above.
    """
    columns = [
        text("category"),
        *numbers(count, "known", "positive", "negative", "uncertain"),
        *(numbers(count, "chosen") if any("chosen" in row for row in rows) else []),
        *numbers(score, "coverage", "prevalence"),
        text("what CFT can do", "reason"),
    ]
    return build_table(rows, columns, title=title, limit=limit, importance="known")


def calibration_table(rows: Sequence[Row], *, limit: int = 40) -> TerminalTable:
    """Calibrations as a table for a terminal; with log-loss before and after on test rows.

    Args:
        rows: as `Calibration.records()` gives them.
        limit: at most so many rows; 0 shows all.
    """
    columns, title = [text("category"), text("method")], "Calibration"
    columns += numbers(score, "scale", "offset")
    columns += numbers(count, positives="n_positive", negatives="n_negative")
    if any("log_loss_before" in row for row in rows):
        title = "Calibration, with the log-loss on test rows before and after"
        columns += numbers(score, before="log_loss_before", after="log_loss_after")
        columns.append(bounds("difference", "log_loss_difference"))
    if any(row.get("reason") for row in rows):
        columns.append(text("note", "reason"))
    return build_table(rows, columns, title=title, limit=limit)


def thresholds_table(rows: Sequence[Row], *, limit: int = 40) -> TerminalTable:
    """Thresholds as a table for a terminal, with what they reach on test rows where there are any.

    Args:
        rows: as `Thresholds.records()` gives them.
        limit: at most so many rows; 0 shows all.
    """
    columns, title = [text("category"), *numbers(score, "threshold", "probability")], "Thresholds"
    if any("sensitivity" in row for row in rows):
        title = "Thresholds, and what they reach on test rows"
        columns += [*numbers(score, "sensitivity"), bounds("interval", "sensitivity", _range)]
        columns += numbers(score, "specificity", "precision")
        columns += numbers(count, **{"alerts/1,000": "alerts_per_1000"})
    return build_table(rows, columns, title=title, limit=limit)


def conformal_table(rows: Sequence[Row], *, limit: int = 40) -> TerminalTable:
    """Cut-offs of sets as a table for a terminal, with what they cover on test rows.

    Args:
        rows: as `ConformalSets.records()` gives them.
        limit: at most so many rows; 0 shows all.
    """
    on_test = any(f"{side}_covered" in row for row in rows for side in ("positive", "negative"))
    title = f"Conformal sets, and what they cover{' on test rows' if on_test else ', as expected'}"
    columns = [text("category")]
    columns += numbers(score, **{"positive from": "positive_from"})
    columns += numbers(score, **{"negative below": "negative_below"})
    for side in ("positive", "negative"):
        if any(f"{side}_covered" in row for row in rows):
            columns += numbers(score, **{f"{side}s covered": f"{side}_covered"})
            columns.append(bounds("interval", f"{side}_covered", _range))
        else:
            columns += numbers(score, **{f"{side}s covered": f"{side}_expected"})
            columns += numbers(score, **{"90% at least": f"{side}_low"})
    if any("both_per_1000" in row for row in rows):
        columns += numbers(count, **{"unsure/1,000": "both_per_1000"})
    return build_table(rows, columns, title=title, limit=limit)


def ensemble_table(
    rows: Sequence[Row], members: Sequence[str], *, metric: str | None = None, limit: int = 40
) -> TerminalTable:
    """An ensemble as a table for a terminal, beside its members on test rows if there are any.

    Args:
        rows: as `Ensemble.records()` gives them.
        members: their names.
        metric: that is shown; None without test rows.
        limit: at most so many rows; 0 shows all.
    """
    columns = [text("category"), *numbers(count, members="n_members")]
    columns += numbers(count, positives="n_positive", negatives="n_negative")
    if metric is not None:
        columns += [*numbers(score, ensemble=metric), bounds("interval", metric, _range)]
        columns += numbers(score, **{name: f"{metric} of {name}" for name in members})
    if any(row.get("reason") for row in rows):
        columns.append(text("note", "reason"))
    title = "Ensemble" if metric is None else f"Ensemble, {metric_label(metric)} on test rows"
    return build_table(rows, columns, title=title, limit=limit)


def variants_grid(variants: Sequence[Row], metric: str, *, reference: str, limit: int = 0) -> Grid:
    """Variants of runs by one metric: mean ± standard deviation over seeds, and the difference.

    Args:
        variants: as `RunComparison.variants`.
        metric: that is shown.
        reference: what differences are to.
        limit: at most so many rows; 0 shows all.
    """
    rows = [row for row in variants if row["metric"] == metric]
    columns = [
        text("run", "variant"),
        Column("mean", lambda row: _spread(row, "score", score), "score"),
        *numbers(gain, "difference"),
        bounds("interval", "difference"),
        *numbers(_mean_count, "better", "worse"),
    ]
    title = f"mean {metric_label(metric)}, differences to {reference}"
    return lay_out(rows, columns, title=title, limit=limit, rest="runs")


def settings_grid(variants: Sequence[Row]) -> Grid:
    """What runs do not have in common, side by side: a row a setting, a column a variant.

    Args:
        variants: as `RunComparison.variants`.
    """
    own = {row["variant"]: row["settings"] for row in variants}
    keys = dict.fromkeys(key for settings in own.values() for key in settings)
    columns = [text("setting")]
    columns += [Column(name, _of_variant(name), "", numeric=False) for name in own]
    rows = [{"setting": key, "of": {n: one.get(key) for n, one in own.items()}} for key in keys]
    seeds = {row["variant"]: ", ".join(map(_seed, row["seeds"])) for row in variants}
    rows += [{"setting": "seed", "of": seeds}] if len(set(seeds.values())) > 1 else []
    return lay_out(rows, columns, title="Settings that differ", rest="settings")


def _of_variant(name: str) -> Callable[[Row], str]:
    return lambda row: row["of"].get(name) or NOTHING


def run_categories_grid(
    rows: Sequence[Row],
    metric: str,
    *,
    reference: str | None = None,
    limit: int = 0,
    most: int = 0,
) -> Grid:
    """Categories of runs side by side: the score of each variant, its mean over seeds.

    Args:
        rows: as `RunComparison.rows`.
        metric: that is shown.
        reference: the head whose scores stand first where it is not one of the runs.
        limit: at most so many rows, those in which variants differ most; 0 shows all.
        most: at most so many variants, the first; 0 shows all.
    """
    own = [row for row in rows if row["metric"] == metric and row["category"] is not None]
    names = list(dict.fromkeys(row["variant"] for row in own))
    found: dict[str, dict[str, Any]] = {}
    for row in own:
        line = found.setdefault(row["category"], {"category": row["category"], "of": {}})
        line |= {"positives": row["n_positive"], "reference": row["reference"]}
        line["of"].setdefault(row["variant"], []).append(row["score"])
    for line in found.values():
        means = [_mean(values) for values in line["of"].values()]
        known = [mean for mean in means if mean is not None]
        line["range"] = max(known) - min(known) if known else None
        line |= {f"score {name}": mean for name, mean in zip(line["of"], means, strict=True)}
    columns = [text("category"), *numbers(count, "positives")]
    columns += numbers(score, **{reference: "reference"}) if reference else []
    shown = names[: most or None]
    columns += [Column(name, _score_of(name), f"score {name}") for name in shown]
    left = len(names) - len(shown)
    note = f"{plural(left, 'further run')} not shown" if left else ""
    title = f"{metric_label(metric)} of each category"
    return lay_out(list(found.values()), columns, title=title, limit=limit, importance="range",
                   note=lambda _: note)  # fmt: skip


def _score_of(name: str) -> Callable[[Row], str]:
    return lambda row: score(row.get(f"score {name}"))


def _seed(seed: object) -> str:
    return NOTHING if seed is None else str(seed)


def _spread(row: Row, key: str, write: Callable[[object], str]) -> str:
    """A mean, with its standard deviation over seeds where there are several."""
    spread = row.get(f"{key}_sd")
    return write(row[key]) + ("" if spread is None else f" ± {spread:.4f}")


def _mean_count(value: object) -> str:
    """A number of categories, in the mean over runs."""
    number = json_ready(value)
    if not isinstance(number, (int, float)):
        return NOTHING
    return count(number) if float(number).is_integer() else f"{number:.1f}"


def _mean(values: Sequence[Any]) -> float | None:
    """The mean; None where a value is not known."""
    return None if None in values else sum(values) / len(values)


_AXES: Final = ("data", "known", "reserve", "scheme", "backbone", "method")


def study_grid(
    lines: Sequence[Row], metric: str, *, level: float, against: str | None = None, limit: int = 0
) -> Grid:
    """The lines of a study: mean ± standard deviation over seeds, and differences to the base.

    Args:
        lines: as `StudyResult.lines`; an axis in which they do not differ is not shown.
        metric: that is shown.
        level: confidence level of the intervals.
        against: the method to which differences are shown beside, or None.
        limit: at most so many rows; 0 shows all.
    """
    differ = [axis for axis in _AXES if len({str(line[axis]) for line in lines}) > 1]
    columns = [Column(axis, _axis_text(axis), axis, numeric=False) for axis in differ]
    columns += [
        *numbers(count, cells="n_cells"),
        Column("mean", lambda row: _spread(row, "score", score), "score"),
        *numbers(gain, **{"− base": "difference"}),
        bounds("interval", "difference"),
    ]
    if against is not None:
        columns += numbers(gain, **{f"− {against}": "against_difference"})
        columns += [bounds("interval", "against_difference")]
    n_groups = max((len(line["groups"]) for line in lines), default=0)
    columns += [Column(f"group {g + 1}", _group(g), "") for g in range(n_groups)]
    if any(line["published"] is not None for line in lines):
        columns += [*numbers(score, "published"), text("source")]
    title = f"mean {metric_label(metric)} on test rows, {level:.0%} intervals"
    return lay_out(lines, columns, title=title, limit=limit, rest="lines")


def _group(number: int) -> Callable[[Row], str]:
    """The score of a group of categories."""
    return lambda row: score(row["groups"][number] if number < len(row["groups"]) else None)


def _axis_text(axis: str) -> Callable[[Row], str]:
    """A value of an axis; shares in percent."""

    def cell(row: Row) -> str:
        value = row[axis]
        return f"{100 * value:.4g}%" if isinstance(value, float) else str(value)

    return cell


def cells_table(rows: Sequence[Row], *, limit: int = 40) -> TerminalTable:
    """Cells to label next as a table for a terminal.

    Args:
        rows: as `Suggestions.to_label`.
        limit: at most so many rows, the first; 0 shows all.
    """
    columns = [text("id"), text("category"), *numbers(score, "probability"), text("why")]
    return build_table(rows, columns, title="To label next", limit=limit, rest="cells")


def suspects_table(rows: Sequence[Row], *, limit: int = 40, title: str) -> TerminalTable:
    """Known labels that are probably wrong as a table for a terminal.

    Args:
        rows: as `Suggestions.false_negatives` or `Suggestions.false_positives`.
        limit: at most so many rows, the first; 0 shows all.
        title: what stands above.
    """
    columns = [text("id"), text("category"), *numbers(count, "given"),
               *numbers(score, "probability")]  # fmt: skip
    return build_table(rows, columns, title=title, limit=limit, rest="labels")
