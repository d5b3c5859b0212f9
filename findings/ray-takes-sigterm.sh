#!/usr/bin/env bash
# ray.init() replaces the SIGTERM handler that a program has set, and does not put it back.
#
# Expected: a handler that a program set before ray.init(), to clean up, still gets SIGTERM; or it is put back by
#   ray.shutdown().
# Happens: Ray's own handler gets it and the process ends; the program's is never called, also after
#   ray.shutdown(). Remedy: keep signal.getsignal(signal.SIGTERM) before ray.init(), and set it again after.
# Versions: ray 2.60.0, Python 3.11.
# Source: the documentation of ray.init and ray.shutdown, which name no signals.
# Output seen:
#   before:         the program's
#   after init:     Ray's
#   after shutdown: Ray's
#   the program's handler was not called
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "ray==2.60.0"
cd "$folder"
cat >show.py <<'PY'
import os
import signal

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray


def mine(number, frame):
    print("the program's handler was called", flush=True)
    raise SystemExit(0)


def whose():
    return "the program's" if signal.getsignal(signal.SIGTERM) is mine else "Ray's"


signal.signal(signal.SIGTERM, mine)
print("before:        ", whose())
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
print("after init:    ", whose())
ray.shutdown()
print("after shutdown:", whose(), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
PY
env/bin/python show.py 2>/dev/null | tee output || true
if grep -q "handler was called" output || ! grep -q "^after shutdown: Ray's" output; then
    echo "changed"
    exit 1
fi
echo "the program's handler was not called"
