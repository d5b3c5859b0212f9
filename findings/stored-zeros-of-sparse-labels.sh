#!/usr/bin/env bash
# scipy: adding two sparse label matrices forgets the zeros that are stored, the known negatives.
#
# Expected: a sparse array that stores 1 for a positive and 0 for a negative label, and nothing for an unknown
#   one, keeps what it stores. It does in every copy, slice, transpose, stack, product with a number, file and
#   change of format but one. Two such arrays of different rows of work (the entries of one are not stored in
#   the other) are merged by adding them.
# Happens: a + b, a - b and a.maximum(b) drop every zero of the result, so that all negatives become unknown;
#   so does the way to the format "dia" and back, and setting an item of a "lil" or "dok" array to 0. Nothing warns.
# Versions: scipy 1.17.1, numpy 2.4.6, Python 3.11.
# Source: scipy.sparse documentation: explicit zeros are stored until eliminate_zeros() is called.
# Output seen:
#   stored by both: 4 entries, 2 of them zeros
#   vstack, transpose, times 1, astype: 4 4 4 4
#   a + b: 2 entries, 0 of them zeros
#   maximum: 2 entries, 0 of them zeros
#   by dia: 2 entries, 0 of them zeros
#   lil, one 1 and one 0 set: 1 entry
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "scipy==1.17.1" "numpy==2.4.6"
cd "$folder"
env/bin/python - <<'PY'
import numpy as np
from scipy import sparse


def labels(rows, columns, values):
    return sparse.coo_array((np.array(values, dtype=np.int8), (rows, columns)), shape=(4, 3)).tocsr()


def counts(array):
    stored = array.tocoo().data
    return len(stored), int((stored == 0).sum())


first = labels([0, 0], [0, 1], [1, 0])  # image 0: category 0 is there, category 1 is not
second = labels([1, 1], [1, 2], [0, 1])  # image 1
n, zeros = (a + b for a, b in zip(counts(first), counts(second)))
print(f"stored by both: {n} entries, {zeros} of them zeros")
assert (n, zeros) == (4, 2)

whole = sparse.vstack([first[:1], second[1:]])
kept = [counts(a)[0] for a in (whole, whole.T, whole * 1, whole.astype(float))]
print("vstack, transpose, times 1, astype:", *kept)
assert kept == [4, 4, 4, 4]

for name, array in (("a + b", first + second), ("maximum", first.maximum(second)), ("by dia", whole.todia())):
    n, zeros = counts(array)
    print(f"{name}: {n} entries, {zeros} of them zeros")
    assert (n, zeros) == (2, 0), f"changed: {name} keeps stored zeros"

lil = sparse.lil_array((1, 2), dtype=np.int8)
lil[0, 0], lil[0, 1] = 1, 0
print(f"lil, one 1 and one 0 set: {lil.nnz} entry")
assert lil.nnz == 1, "changed: setting an item to 0 stores it"
PY
