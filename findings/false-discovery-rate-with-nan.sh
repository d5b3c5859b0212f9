#!/usr/bin/env bash
# One missing p-value: three packages, three answers; statsmodels loses every corrected p-value but not the decisions.
#
# Expected: a category without a p-value (too few positives: NaN) is left out, or the call is refused.
# Happens: statsmodels' multipletests(method="fdr_bh") decides as if NaN were a fourth hypothesis and returns
#   NaN for *all* corrected p-values beside decisions that are not NaN; "bonferroni" multiplies by 4, not by 3.
#   scipy refuses. pingouin, which wraps the same procedure, leaves NaN out.
# Versions: statsmodels 0.15.0, scipy 1.17.1, pingouin 0.7.0, numpy 2.4.6, pandas 3.1.1, Python 3.11.
# Source: the packages' documentation of multipletests, false_discovery_control and multicomp.
# Output seen:
#   statsmodels fdr_bh     [True, True, False, False] [nan, nan, nan, nan]
#   statsmodels bonferroni [True, True, False, False] [0.004, 0.008, 1.0, nan]
#   scipy ValueError
#   pingouin fdr_bh        [True, True, False, False] [0.003, 0.003, 0.8, nan]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "statsmodels==0.15.0" "scipy==1.17.1" \
    "pingouin==0.7.0" "numpy==2.4.6" "pandas==3.1.1"
cd "$folder"
env/bin/python - <<'PY'
import numpy as np
import pingouin
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

p = [0.001, 0.002, 0.8, np.nan]
found = {}
for method in ("fdr_bh", "bonferroni"):
    reject, corrected = multipletests(p, method=method)[:2]
    found[method] = corrected
    print("statsmodels", method, reject.tolist(), corrected.round(6).tolist())
    assert reject.tolist() == [True, True, False, False]
assert np.isnan(found["fdr_bh"]).all(), "changed: corrected p-values survive a NaN"
assert np.isclose(found["bonferroni"][0], 0.004), "changed: NaN is no longer counted"
try:
    false_discovery_control(p)
except ValueError:
    print("scipy ValueError")
else:
    raise SystemExit("changed: scipy takes NaN")
reject, corrected = pingouin.multicomp(p, method="fdr_bh")
print("pingouin fdr_bh", reject.tolist(), corrected.round(6).tolist())
assert np.isclose(corrected[0], 0.003) and np.isnan(corrected[3])
PY
