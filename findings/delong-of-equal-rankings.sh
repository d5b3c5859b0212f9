#!/usr/bin/env bash
# MLstatkit's DeLong test calls two equal rankings significantly different, with p = 0.
#
# Expected: comparing a model with itself, or with a copy whose probabilities are squared (the same order, so
#   the same ROC curve), gives z = 0 and p = 1, or NaN.
# Happens: the variance of the difference is 0, so the function falls back to a bootstrap, in which every
#   difference is 0; it returns z = 0.0 and p = 0.0. A fine-tuned head that left a category as it was counts
#   as "p < 0.001".
# Versions: MLstatkit 0.1.91, numpy 2.4.6, scikit-learn 1.9.1, Python 3.11.
# Source: the package's own documentation of Delong_test (z score, p value, intervals, areas, a dict).
# Output seen:
#   itself:  z = 0.0, p = 0.0, area 0.7710 and 0.7710, by bootstrap
#   squared: z = 0.0, p = 0.0, area 0.7710 and 0.7710, by bootstrap
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "MLstatkit==0.1.91" "numpy==2.4.6" "scikit-learn==1.9.1"
cd "$folder"
env/bin/python - <<'PY'
import numpy as np
from MLstatkit import Delong_test

rng = np.random.default_rng(0)
truth = (np.arange(300) < 40).astype(int)
model = 1 / (1 + np.exp(-(rng.normal(size=300) + truth)))
for name, other in (("itself", model), ("squared", model**2)):
    z, p, _, _, area, other_area, about = Delong_test(truth, model, other)
    print(f"{name}: z = {z}, p = {p}, area {area:.4f} and {other_area:.4f}, by {about['method']}")
    assert area == other_area
    assert p == 0.0, "changed: equal rankings are no longer called different"
PY
