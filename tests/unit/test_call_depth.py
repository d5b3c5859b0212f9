"""From `tune` to the arithmetic it is few calls, so that a reader can follow them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import catwise
from catwise import PartialLabels
from catwise.tuning.fits import penalised
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.rows import known
from catwise.tuning.rows.products import product
from catwise.tuning.rows.sampled import KnownEntries, is_compiled

MOST = 8
ROOT = str(Path(catwise.__file__).parent)
PRODUCTS = {
    "dense": (product.__code__,),
    "indexed": (product.__code__,),
    "sampled": tuple(f.__wrapped__.__code__ for f in (KnownEntries.forward, KnownEntries.backward)),
}
SHARE = {"dense": 0.9, "indexed": 0.45, "sampled": 0.1}  # of labels that are known
CLASS = {"dense": known.KnownRows, "indexed": known._Indexed, "sampled": known._Sparse}


def split(rng, n: int, share: float):
    """Rows with a planted signal, and labels of which a share is known."""
    z = rng.normal(size=(n, 6)).astype(np.float32)
    y = (z[:, :3] + rng.normal(size=(n, 3)) > 0.3).astype(float)
    y[rng.random(y.shape) > share] = np.nan
    return z, PartialLabels.from_array(y, encoding="nan")


def frames_between(code, frame) -> list[str]:
    """Functions of catwise that are open between `tune` and a frame; comprehensions count not."""
    names = []
    while frame is not None and frame.f_code is not code:
        inside = frame.f_code.co_filename.startswith(ROOT)
        if inside and not frame.f_code.co_name.startswith("<"):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names[::-1][:-1] if frame is not None else []


@pytest.mark.parametrize("layout", list(SHARE))
def test_tune_reaches_the_products_of_the_penalised_fit_in_few_calls(layout, monkeypatch):
    """At most eight functions lie between; held for every product of every fit."""
    if layout == "sampled" and not is_compiled():
        pytest.skip("the sampled products were not compiled here")
    rng = np.random.default_rng(0)
    share = SHARE[layout]
    head = catwise.Head(np.eye(6)[:3] + 0.3, np.zeros(3))
    kinds, chains = set(), {}
    lay_out = known.known_rows

    def seen(*args, **options):
        rows, costs = lay_out(*args, **options)
        kinds.add(type(rows))
        return rows, costs

    monkeypatch.setattr(known, "known_rows", seen)
    tune = catwise.tune
    own = tune.__code__
    fit = penalised.fit_path.__code__.co_name

    def profile(frame, event, argument):
        if event == "call" and frame.f_code in PRODUCTS[layout]:
            names = frames_between(own, frame)
            if fit in names:
                chains[tuple(names)] = True

    config = DefaultConfig(penalties=(5.0, 1.0), n_folds=2)
    sys.setprofile(profile)
    try:
        tune(head, split(rng, 400, share), split(rng, 300, share), config=config)
    finally:
        sys.setprofile(None)
    assert CLASS[layout] in kinds
    assert {"step", "fit_path"} <= {name for chain in chains for name in chain}
    longest = max(chains, key=len)
    assert len(longest) <= MOST, " > ".join(longest)
