"""Names of categories that mean the same: told by people, or known of chest radiographs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from catwise.errors import CategoryError, nearest
from catwise.labels.names import category_names

CHEST_XRAY: Final = (
    ("Pleural Effusion", "Effusion"),
    ("Pleural Thickening",),
    ("Lung Opacity", "Airspace Opacity"),
    ("Pulmonary Fibrosis", "Fibrosis"),
    ("Infiltration", "Infiltrate", "Infiltrates"),
    ("Atelectasis", "Atelectases"),
    ("Edema", "Pulmonary Edema"),
    ("Hernia", "Hiatal Hernia"),
    ("Mass", "Pulmonary Mass"),
    ("No Finding", "Normal"),
)
"""Names of one observation, whatever their case and whether they are joined by "_" or a space.

Sources: the tables of CheXpert and MIMIC-CXR ("Pleural Effusion"; "Airspace Opacity" in tables of
CheXpert's test set), ChestX-ray14 ("Effusion", "Pleural_Thickening", "Fibrosis", "Infiltration",
"Hernia"), VinDr-CXR ("Pulmonary fibrosis", "Pleural thickening") and PadChest ("pulmonary edema",
"hiatal hernia", "pulmonary mass", "infiltrates", "normal"), and what torchxrayvision's data sets
make of them (its `datasets.py`: "Pleural Effusion" is "Effusion", "pleural thickening" is
"Pleural_Thickening", "Infiltrate" is "Infiltration", "Atelectases" is "Atelectasis").
"""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


_MEANINGS: Final = {_plain(name): group[0] for group in CHEST_XRAY for name in group}


def _meaning(name: str) -> str:
    """What a name is compared by: equal for names that mean the same."""
    return _plain(_MEANINGS.get(_plain(name), name))


def matching_names(names: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Which names mean one of the names that are wanted, where exactly one does.

    Names differ in their case and in spaces, "_" and "-", or are known to mean one observation of
    chest radiographs (`CHEST_XRAY`).

    >>> matching_names(["Pleural Effusion", "cat"], ["Effusion", "Mass"])
    {'Pleural Effusion': 'Effusion'}
    """
    names, wanted = list(names), list(wanted)
    by_meaning: dict[str, list[str]] = {}
    for name in wanted:
        by_meaning.setdefault(_meaning(name), []).append(name)
    found: dict[str, str] = {}
    for name in set(names) - set(wanted):
        fits = by_meaning.get(_meaning(name), [])
        if len(fits) == 1 and fits[0] not in names and fits[0] not in found.values():
            found[name] = fits[0]
    return {name: found[name] for name in names if name in found}


def renamed(
    categories: Sequence[str], new_names: Mapping[str, str], *, of: str = "the labels"
) -> tuple[str, ...]:
    """The names of categories after some were changed; old names that are not there say nothing.

    Raises:
        CategoryError: If two categories would have one name, or neither the old nor the new name is
            there.

    >>> renamed(["Effusion", "Mass"], {"Effusion": "Pleural Effusion"})
    ('Pleural Effusion', 'Mass')
    """
    there = set(categories)
    lost = [old for old, new in new_names.items() if not {old, new} & there]
    if lost:
        raise CategoryError(
            f"{of} have no category {lost[0]!r} that could be renamed"
            f"{nearest(lost[0], categories)}.",
            expected=f"one of {len(there):,} names such as "
            + ", ".join(map(repr, list(categories)[:3])),
        )
    return category_names([new_names.get(one, one) for one in categories], len(categories), of=of)


def renaming_remedy(new_names: Mapping[str, str]) -> str:
    """How labels are renamed so, in Python and on the command line."""
    options = [f"--rename {shlex.quote(f'{old}={new}')}" for old, new in new_names.items()]
    return f"rename_categories({dict(new_names)!r}) ({' '.join(options)})"
