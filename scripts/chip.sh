#!/usr/bin/env bash
# Runs the tests that need the TPU's compiler (libtpu, 690 MB), each pair of JAX and libtpu in an
# environment of its own, which is made once in ${PALLAS_SHIM_VENVS:-~/.cache/pallas_shim}.
#
#   scripts/chip.sh                      tests/chip on each tested JAX
#   scripts/chip.sh 0.10.2 [arguments]   on one version; arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

venvs=${PALLAS_SHIM_VENVS:-$HOME/.cache/pallas_shim}
unset "${!PALLAS_NUMPY@}" JAX_ENABLE_X64 XLA_FLAGS
export JAX_PLATFORMS=cpu

python_for() { # VERSION: prints the first interpreter that versions.py names for it
    local minor candidate
    for minor in $(python3 -c 'import runpy, sys
print(*runpy.run_path("pallas_shim/jax_compat/versions.py")["pythons"](sys.argv[1]))' "$1"); do
        for candidate in "python$minor" "$HOME"/.pyenv/versions/"$minor".*/bin/python; do
            if command -v "$candidate" >/dev/null; then
                command -v "$candidate"
                return
            fi
        done
    done
    echo "no Python for JAX $1: put one on PATH, or install it with pyenv" >&2
    return 1
}

set_up() { # VERSION
    local venv=$venvs/chip-$1
    [ -e "$venv/complete" ] && return
    "$(python_for "$1")" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "jax[tpu]==$1" -r scripts/requirements-run.txt -r scripts/requirements-test.txt \
        -r scripts/requirements-chip.txt
    touch "$venv/complete"
}

if [ $# -gt 0 ]; then
    set_up "$1"
    exec "$venvs/chip-$1/bin/python" -m pytest -q tests/chip "${@:2}"
fi
status=0
for version in $(python3 -c 'import runpy
print(*runpy.run_path("pallas_shim/jax_compat/versions.py")["TESTED"])'); do
    echo "== tests/chip on JAX $version"
    set_up "$version"
    "$venvs/chip-$version/bin/python" -m pytest -q tests/chip || status=1
done
exit $status
