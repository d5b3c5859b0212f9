#!/usr/bin/env bash
# Keras' AUC of a rare category is 0.5 where every probability is under 1/199, whatever the ranking.
#
# Expected: the area under the ROC curve does not change when a constant is added to all logits; 200 thresholds
#   cost the third decimal.
# Happens: the thresholds are spread evenly over the *probabilities*. With the same ranking at lower
#   probabilities, as a calibrated model gives for a category with one positive in a thousand, the area falls
#   from 0.839 to 0.549 and then to exactly 0.5, and average precision (curve="PR") to the prevalence, without
#   a word. With multi_label=True such categories pull the mean down.
# Versions: keras 3.15.1 on torch 2.13.0 (CPU), numpy 2.4.6, Python 3.11.
# Source: the documentation of keras.metrics.AUC (num_thresholds, from_logits, multi_label).
# Output seen:
#   shift   0: ROC 0.839, PR 0.469
#   shift  -6: ROC 0.795, PR 0.448
#   shift  -8: ROC 0.549, PR 0.217
#   shift -10: ROC 0.500, PR 0.104
#   ranks:     ROC 0.839
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "keras==3.15.1" "numpy==2.4.6"
cd "$folder"
KERAS_BACKEND=torch KERAS_HOME="$folder" env/bin/python - <<'PY'
import keras
import numpy as np

rng = np.random.default_rng(0)
truth = (rng.random((4000, 1)) < 0.1).astype("float32")
logits = (rng.normal(size=(4000, 1)) + 1.5 * truth).astype("float32")
found = {}
for shift in (0, -6, -8, -10):
    areas = []
    for curve in ("ROC", "PR"):
        metric = keras.metrics.AUC(multi_label=True, from_logits=True, curve=curve)
        metric.update_state(truth, logits + shift)
        areas.append(float(metric.result()))
    found[shift] = areas
    print(f"shift {shift:3d}: ROC {areas[0]:.3f}, PR {areas[1]:.3f}")
high, low = logits[truth == 1], logits[truth == 0]
exact = float((high[:, None] > low[None]).mean())
print(f"ranks:     ROC {exact:.3f}")
assert abs(found[0][0] - exact) < 0.005
assert abs(found[-10][0] - 0.5) < 1e-6, "changed: rare categories have their area"
assert abs(found[-10][1] - truth.mean()) < 0.01
PY
