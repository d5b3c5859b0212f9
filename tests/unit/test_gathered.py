"""Copies of known rows: what is counted is what is made, and the bound on it binds."""

from __future__ import annotations

import pytest
import torch

from catwise._configs import EvolutionConfig
from catwise.metrics import resolve_metric
from catwise.tuning.fits import fitness, genetic
from catwise.tuning.fits.fitness import PopulationFitness, memory_of
from catwise.tuning.fits.genetic import GeneticConfig
from catwise.tuning.fits.loop import HeadColumns
from catwise.tuning.fits.penalised import fit_path
from catwise.tuning.rows import costs
from catwise.tuning.rows.costs import choose_layout
from catwise.tuning.rows.gathered import Gathered
from catwise.tuning.rows.known import LabelledRows, known_rows, lay_out
from catwise.tuning.rows.tuning_rows import TuningRows

COUNTS = (400, 6, 5, 3, 90, 0, 4, 80)  # one category knows far more than most


def data(n=400, k=8, dtype=torch.float32):
    """Features (n, k) and codes (C, n) with known labels as counted above."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, k, generator=g, dtype=dtype)
    codes = torch.full((len(COUNTS), n), -1, dtype=torch.int8)
    for row, count in zip(codes, COUNTS, strict=True):
        at = torch.randperm(n, generator=g)[:count]
        row[at] = (torch.rand(count, generator=g) < 0.4).to(torch.int8)
    return x, codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_counted_is_what_is_made(dtype):
    """For the copies of the fits, on any device."""
    x, codes = data(dtype=dtype)
    counts = (codes >= 0).sum(1)
    counted = choose_layout(400, counts, 8, itemsize=dtype.itemsize, device="cuda")
    rows, chosen = known_rows(x, codes >= 0, layout="gathered")
    assert rows.copies.nbytes == counted.gathered_bytes == chosen.gathered_bytes
    blocks = {group.block.untyped_storage().data_ptr() for group in rows.copies.groups}
    assert len(blocks) == len(rows.copies.groups)
    assert counted.gathered_bytes < 2 * int(counts.sum()) * 8 * dtype.itemsize


def test_the_bound_binds(monkeypatch):
    """Where copies are cheapest, as on a GPU, none are made beyond the bound."""
    for name in ("_CPU", "_COMPILED"):
        monkeypatch.setattr(costs, name, costs._GPU._replace(gathered=1e30))
    x, codes = data()
    rows = TuningRows(x, torch.zeros(codes.shape), codes)
    assert isinstance(lay_out(rows).rows.copies, Gathered)
    bound = choose_layout(400, (codes >= 0).sum(1), 8).gathered_bytes - 1
    assert not hasattr(lay_out(rows, gather_bytes=bound).rows, "copies")


def test_copies_of_some_categories_are_shared_or_fewer():
    """Categories that leave take their copies along; whole groups are not copied again."""
    x, codes = data()
    whole = Gathered.build(x, codes >= 0, x.dtype)
    keep = torch.tensor([1, 2, 3, 4, 7])
    part = whole.select_categories(keep)
    assert part.nbytes < whole.nbytes
    held = {group.block.data_ptr() for group in whole.groups}
    assert any(group.block.data_ptr() in held for group in part.groups)
    weight = torch.randn(len(codes), 8)
    every = whole.forward(weight)
    torch.testing.assert_close(part.forward(weight[keep]), every[keep])


def test_fits_of_categories_of_very_different_lengths_agree():
    """Groups of their own change nothing in the fit."""
    x, codes = data(dtype=torch.float64)
    offset = torch.zeros(codes.shape, dtype=torch.float64)
    fits = []
    for layout in ("dense", "gathered"):
        rows, _ = known_rows(x, codes >= 0, layout=layout)
        labelled = LabelledRows.from_codes(rows, codes, offset)
        fits += fit_path([labelled], [1.0], tolerance=1e-9)
    torch.testing.assert_close(fits[0].delta, fits[1].delta)


@pytest.mark.parametrize("share", [fitness._SHARE_MIN_DENSITY, 1e-9])
def test_blocks_of_populations_stay_within_the_bound(share, monkeypatch):
    """Each block's rows, gathered or kept, are counted, not a mean over all categories."""
    monkeypatch.setattr(fitness, "_SHARE_MIN_DENSITY", share)
    x, codes = data()
    index = (codes >= 0).any(1).nonzero().flatten()
    options = EvolutionConfig(population_size=6)
    known = codes >= 0
    alone = [memory_of(known[c : c + 1], 8, 6, torch.float32).nbytes for c in index.tolist()]
    config = GeneticConfig(operators=options, gather_bytes=max(alone))
    blocks = [index[block] for block in genetic._blocks(known[index], 8, config)]
    assert torch.equal(torch.cat(blocks), index)
    assert 1 < len(blocks) < len(index)
    for block in blocks:
        planned = memory_of(known[block], 8, 6, torch.float32)
        assert planned.nbytes <= config.gather_bytes
        head = HeadColumns(torch.zeros(len(block), 8), None)
        metric = resolve_metric("auroc")
        made = PopulationFitness(x, codes[block], head, metric, population_size=6)
        assert made.shared == planned.shared
        if not made.shared:
            assert sum(part.x.nbytes for part in made._parts) == planned.nbytes
