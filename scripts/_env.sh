# Sourced by the scripts of this folder: makes .venv with the tested versions, once.
#
#   prepare_env EXTRAS      EXTRAS: "" or a comma-separated list such as "test,lint"
#
# The environment is made anew only when the project file, the pins or the extras change.
# CATWISE_VENV names another place for it; PYTHON names the interpreter to use.

# Print the first Python >= 3.10 that starts and can make an environment; of an environment that
# is active, the one behind it: its own may be the one that is made anew.
find_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
            >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)'
            return 0
        fi
    done
    echo "scripts: no Python 3.10 or newer with venv was found; name one by PYTHON=..." >&2
    return 1
}

# Print one digest of everything that decides what the environment holds.
env_stamp() {
    "$1" - "$2" <<'PY'
import hashlib
import pathlib
import sys

digest = hashlib.sha256(f"{sys.version} {sys.argv[1]} {pathlib.Path.cwd()}".encode())
for name in (
    "pyproject.toml",
    "constraints.txt",
    "hatch_build.py",
    "src/catwise/_native/sampled.c",
):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

prepare_env() {
    extras=$1
    venv=${CATWISE_VENV:-.venv}
    base=$(find_python) || return 1
    stamp=$(env_stamp "$base" "$extras") || return 1
    if [ ! -f "$venv/catwise-stamp" ] || [ "$(cat "$venv/catwise-stamp")" != "$stamp" ]; then
        echo "== environment: $venv ($("$base" --version))"
        rm -rf "$venv"
        "$base" -m venv "$venv" || return 1
        # The build tool comes from the same pins, so nothing is built with an untested one.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -c constraints.txt hatchling editables || return 1
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -c constraints.txt --no-build-isolation -e ".${extras:+[$extras]}" || return 1
        printf '%s\n' "$stamp" >"$venv/catwise-stamp"
    fi
    PATH="$(cd "$venv" && pwd)/bin:$PATH"
    export PATH
    unset PYTHONHOME PYTHONPATH
    # One thread a process: the tests run two processes side by side.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
}
