#!/usr/bin/env bash
# Runs the checks and the tests on every supported JAX, each in an environment of its own, which
# is made once in ${PALLAS_SHIM_VENVS:-~/.cache/pallas_shim}/jax-VERSION.
#
#   scripts/test.sh                      ruff, mypy, the floors of imports, all tests on three versions,
#                                        and whether the shim works on some of those between them
#   scripts/test.sh 0.10.2 [arguments]   the tests on any version; arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

versions="0.8.0 0.10.2 0.12.0.1"
# JAX's internals are others in each of these.
between="0.9.0 0.9.2 0.10.1 0.11.2"
checks_on=0.10.2
venvs=${PALLAS_SHIM_VENVS:-$HOME/.cache/pallas_shim}
requirements=scripts/requirements-test.txt

say() { printf '== %s\n' "$*"; }

# The tests set these themselves; what the caller has set must not reach them.
unset "${!PALLAS_NUMPY@}" JAX_ENABLE_X64 XLA_FLAGS
# Each worker would compile all the tests anew.
unset PYTHONDONTWRITEBYTECODE
export JAX_PLATFORMS=cpu

pythons_of() { # VERSION: prints the Pythons that a JAX may run on, the first that is found
    case $1 in
    0.8.* | 0.9.* | 0.10.*) echo 3.11 ;;
    *) echo 3.13 3.12 ;;
    esac
}

find_python() { # MINOR...: prints the first interpreter of one of these versions
    local minor candidate
    for minor in "$@"; do
        for candidate in "python$minor" "$HOME"/.pyenv/versions/"$minor".*/bin/python; do
            if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$minor')" \
                2>/dev/null; then
                command -v "$candidate"
                return
            fi
        done
    done
    say "needs Python ${*// / or }: put pythonX.Y on PATH, or install it with pyenv" >&2
    return 1
}

set_up() { # VERSION: makes its environment, unless it is there and complete
    local venv=$venvs/jax-$1 stamp python
    stamp="$1 $(cksum <"$requirements")"
    [ "$(cat "$venv/complete" 2>/dev/null)" = "$stamp" ] && return
    if [ ! -x "$venv/bin/python" ]; then
        # shellcheck disable=SC2046  # a list of versions
        python=$(find_python $(pythons_of "$1"))
        say "making $venv with $python"
        "$python" -m venv "$venv"
    fi
    say "installing JAX $1 and what the tests need into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "jax==$1" "jaxlib==$1" -r "$requirements"
    printf '%s' "$stamp" >"$venv/complete"
}

if [ $# -gt 0 ]; then
    if ! [[ $1 =~ ^0\.[0-9.]+$ ]]; then
        say "$1 isn't a version of JAX, such as 0.10.2" >&2
        exit 2
    fi
    set_up "$1"
    say "tests on JAX $1"
    exec "$venvs/jax-$1/bin/python" -m pytest -q "${@:2}"
fi

for version in $versions $between; do
    set_up "$version"
done

failed=()
check() { # WHAT COMMAND...: runs the command, and remembers what failed
    say "$1"
    "${@:2}" || failed+=("$1")
}

bin=$venvs/jax-$checks_on/bin
check ruff "$bin/ruff" check .
check mypy "$bin/mypy"
check "imports that point down (.importlinter)" "$bin/lint-imports" --no-cache
for version in $between; do
    check "a kernel on JAX $version" "$venvs/jax-$version/bin/python" -m pallas_shim doctor
done
# The runner of JAX's tests, the benchmark suite, emitted numbers, passes over programs of the tests'
# own, and how a wheel is installed depend on no JAX. What changes a key of the cache, tests/cache
# tests on each.
of_no_jax=(
    --ignore=tests/conformance
    --ignore=tests/evaluator/codegen/test_numbers.py
    --ignore=tests/evaluator/passes/test_properties.py
    --ignore=tests/processes/test_benchmarks.py
    --deselect=tests/processes/test_cache.py::test_a_change_is_seen
    -k "not wheel and not on_stock_jax"
)
# How a process starts depends on Python.
of_python=(
    --ignore=tests/processes/test_bad_input.py
    --ignore=tests/processes/test_install.py
    --ignore=tests/processes/test_run_unmodified.py
    --ignore=tests/processes/test_sitecustomize.py
    --ignore=tests/processes/test_ways_to_start.py
)
for version in $versions; do
    case $version in
    "$checks_on") ignored=() ;;
    0.8.0) ignored=("${of_no_jax[@]}" "${of_python[@]}") ;;
    *) ignored=("${of_no_jax[@]}") ;;
    esac
    check "tests on JAX $version" \
        "$venvs/jax-$version/bin/python" -m pytest -q -n 2 --dist worksteal "${ignored[@]}"
done

if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: $(printf '%s; ' "${failed[@]}" | sed 's/; $//')"
    exit 1
fi
say "all checks and tests passed on JAX ${versions// /, }, and kernels run on ${between// /, }"
