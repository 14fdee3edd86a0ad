#!/bin/sh
# Runs an unmodified Pallas script with its kernels in NumPy, on a machine where nothing is set up.
#
#   scripts/run_unmodified.sh script.py [args]      (also -m module, -c code)
#
# Without PYTHON, the first run makes a virtual environment with JAX and this checkout in
# ${XDG_CACHE_HOME:-~/.cache}/pallas_shim. With PYTHON=/path/to/python, that interpreter's
# environment is used and nothing is put into it. The PALLAS_NUMPY* variables hold as usual.
set -eu

say() { echo "run_unmodified.sh: $*" >&2; }

if [ $# -eq 0 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pallas_shim
PALLAS_NUMPY=${PALLAS_NUMPY:-1}
export PALLAS_NUMPY

supported='import sys; sys.exit(sys.version_info < (3, 11))'

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    if ! "$python" -c "$supported"; then
        say "PYTHON=$python isn't a Python 3.11 or newer that runs"
        exit 1
    fi
    # pallas_shim's own two requirements may be missing where JAX is at home.
    missing() {
        PALLAS_NUMPY=0 "$python" -P -c '
from importlib.util import find_spec
print(*[m for m in ("wrapt", "importlib_metadata") if not find_spec(m)])'
    }
    if [ -n "$(missing)" ]; then
        extra=$cache/requirements-$("$python" -c 'import sys; print(sys.implementation.cache_tag)')
        PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$extra
        export PYTHONPATH
        absent=$(missing)
        if [ -n "$absent" ]; then
            say "$python lacks $absent; installing into $extra (once)"
            # shellcheck disable=SC2086
            if ! PALLAS_NUMPY=0 "$python" -m pip install -q --target "$extra" $absent >&2; then
                say "that failed; install in the environment of $python: $absent"
                exit 1
            fi
        fi
    fi
    PYTHONPATH=$checkout/sitecustomize_pkg${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    exec "$python" "$@"
fi

venv=$cache/run
# Made anew when the checkout moves or its requirements change.
stamp="$checkout $(cksum <"$checkout/setup.cfg")"
if [ "$(cat "$venv/complete" 2>/dev/null)" != "$stamp" ]; then
    python=
    for name in python3 python3.13 python3.12 python3.11; do
        if command -v $name >/dev/null && $name -c "$supported" 2>/dev/null; then
            python=$name
            break
        fi
    done
    if [ -z "$python" ]; then
        say "no Python 3.11 or newer on PATH; install one, or set PYTHON=/path/to/python"
        exit 1
    fi
    mkdir -p "$cache"
    # Of runs that start at the same time one sets up, and the others wait for it.
    "$python" -c '
import fcntl, subprocess, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    sys.exit(subprocess.call(sys.argv[2:]))' "$venv.lock" sh -euc '
venv=$1 stamp=$2 python=$3 checkout=$4
[ "$(cat "$venv/complete" 2>/dev/null)" != "$stamp" ] || exit 0
say() { echo "run_unmodified.sh: $*" >&2; }
say "setting up $venv with JAX and pallas_shim (once; $($python --version))"
rm -rf "$venv"
$python -m venv "$venv" >&2
PALLAS_NUMPY=0 "$venv/bin/python" -m pip install --quiet --editable "$checkout" >&2
printf "%s" "$stamp" >"$venv/complete"
say "done"' sh "$venv" "$stamp" "$python" "$checkout"
fi
exec "$venv/bin/python" "$@"
