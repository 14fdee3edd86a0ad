#!/usr/bin/env bash
# Runs the checks and the tests on every supported JAX, each in an environment of its own, which
# is made once in ${PALLAS_SHIM_VENVS:-~/.cache/pallas_shim}/jax-VERSION.
#
#   scripts/test.sh                      ruff, mypy, import contracts; the tests on each tested version;
#                                        one kernel on each version between them
#   scripts/test.sh 0.10.2 [arguments]   the tests on any version; arguments go to pytest
#
# The versions stand in pallas_shim/jax_compat/versions.py.
set -euo pipefail
cd "$(dirname "$0")/.."

venvs=${PALLAS_SHIM_VENVS:-$HOME/.cache/pallas_shim}
requirements_run=scripts/requirements-run.txt
requirements=scripts/requirements-test.txt
requirements_once=scripts/requirements-once.txt

say() { printf '== %s\n' "$*"; }

# The tests set these themselves, so the caller's values must not reach them.
unset "${!PALLAS_NUMPY@}" JAX_ENABLE_X64 XLA_FLAGS
# With it, each worker would compile all tests again.
unset PYTHONDONTWRITEBYTECODE
export JAX_PLATFORMS=cpu

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

# Any Python can read versions.py, since it imports nothing.
reader=$(find_python 3.11 3.12 3.13)
of_versions_py() { # EXPRESSION: prints the strings that it gives among versions.py's names
    "$reader" -c 'import runpy, sys
names = runpy.run_path("pallas_shim/jax_compat/versions.py")
print(*eval(sys.argv[1], names))' "$1"
}
versions=$(of_versions_py TESTED)
between=$(of_versions_py BETWEEN)
oldest=$(of_versions_py '[OLDEST]')
checks_on=$(of_versions_py '[CHECKED_ON]')

set_up() { # VERSION REQUIREMENTS...: makes its environment, unless it is there and complete
    local version=$1 venv=$venvs/jax-$1 files=("${@:2}") stamp python
    stamp="$version $(cat "${files[@]}" | cksum)"
    [ "$(cat "$venv/complete" 2>/dev/null)" = "$stamp" ] && return
    if [ ! -x "$venv/bin/python" ]; then
        # shellcheck disable=SC2046  # a list of versions
        python=$(find_python $(of_versions_py "pythons('$version')"))
        say "making $venv with $python"
        "$python" -m venv "$venv"
    fi
    say "installing JAX $version and what the tests need into $venv"
    # Python compiles what is imported. That is a small part, and compiling all takes half of the time.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        "jax==$version" "jaxlib==$version" "${files[@]/#/--requirement=}"
    printf '%s' "$stamp" >"$venv/complete"
}

set_up_tests() { # VERSION
    if [ "$1" = "$checks_on" ]; then
        set_up "$1" "$requirements_run" "$requirements" "$requirements_once"
    else
        set_up "$1" "$requirements_run" "$requirements"
    fi
}

if [ $# -gt 0 ]; then
    if ! [[ $1 =~ ^0\.[0-9.]+$ ]]; then
        say "$1 isn't a version of JAX, such as 0.10.2" >&2
        exit 2
    fi
    set_up_tests "$1"
    say "tests on JAX $1"
    exec "$venvs/jax-$1/bin/python" -m pytest -q "${@:2}"
fi

# One kernel needs no more than the shim itself does. (Several are made at once.)
makers=()
for version in $between; do
    set_up "$version" "$requirements_run" &
    makers+=($!)
done
for version in $versions; do
    set_up_tests "$version" &
    makers+=($!)
done
for maker in "${makers[@]}"; do
    wait "$maker"
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
site=$(mktemp -d)
check "the docs as a site (docs/conf.py)" "$bin/sphinx-build" -q -W --keep-going docs "$site"
rm -r "$site"
for version in $between; do
    check "a kernel on JAX $version" "$venvs/jax-$version/bin/python" -m pallas_shim doctor
done
# These don't depend on the version of JAX, so they run on one version only: the walk-throughs of
# the docs, the conformance runner, the benchmark suite, showing what checks find, reports of many
# processes, plugins of other tools, a page in a browser, the processes of dumps, bisect, view and
# debug, generated arithmetic, native code, passes over hand-written programs and what they cost,
# the order of sets, installing a wheel, the command that ranks configurations. Random kernels have a
# command of their own.
# tests/cache covers on every version what changes a cache key.
of_no_jax=(
    --ignore=tests/chip/test_dumps.py
    --ignore=tests/chip/test_isolation.py
    --ignore=tests/chip/test_processes.py
    --ignore=tests/chip/test_profile.py
    --ignore=tests/chip/test_session.py
    --ignore=tests/chip/test_tune.py
    --ignore=tests/chip/test_whole.py
    --ignore=tests/conformance
    --ignore=tests/fuzz
    --ignore=tests/evaluator/codegen/test_native.py
    --ignore=tests/evaluator/codegen/test_native_mixed.py
    --ignore=tests/evaluator/codegen/test_native_products.py
    --ignore=tests/evaluator/codegen/test_native_sums.py
    --ignore=tests/evaluator/codegen/test_native_threads.py
    --ignore=tests/evaluator/codegen/test_numbers.py
    --ignore=tests/evaluator/passes/test_cost.py
    --ignore=tests/evaluator/passes/test_properties.py
    --ignore=tests/evaluator/test_products.py
    --ignore=tests/mutation
    --ignore=tests/test_native_on_disk.py
    --ignore=tests/processes/test_benchmarks.py
    --ignore=tests/processes/test_check.py
    --ignore=tests/processes/test_determinism.py
    --ignore=tests/processes/test_elsewhere.py
    --ignore=tests/test_structure.py
    --ignore=tests/processes/test_look_inside.py
    --ignore=tests/processes/test_notebooks.py
    --ignore=tests/processes/test_pytest_plugin.py
    --ignore=tests/processes/test_reports.py
    --ignore=tests/processes/test_view_and_debug.py
    --ignore=tests/processes/test_walkthroughs.py
    --ignore=tests/view/test_browser.py
    --deselect=tests/processes/test_cache.py::test_a_change_is_seen
    -k "not wheel and not on_stock_jax"
)
# These depend on the version of Python, and the oldest JAX is tested on the same one as the next.
of_python=(
    --ignore=tests/test_exit_status.py
    --ignore=tests/processes/test_bad_input.py
    --ignore=tests/processes/test_cache.py
    --ignore=tests/processes/test_install.py
    --ignore=tests/processes/test_off.py
    --ignore=tests/processes/test_run_unmodified.py
    --ignore=tests/processes/test_sitecustomize.py
    --ignore=tests/processes/test_ways_to_start.py
)
# One version runs all cases of each test. The others run half of them each, where there are many.
for version in $versions; do
    case $version in
    "$checks_on") ignored=() ;;
    "$oldest") ignored=("${of_no_jax[@]}" "${of_python[@]}" --some 1/2) ;;
    *) ignored=("${of_no_jax[@]}" --some 2/2) ;;
    esac
    check "tests on JAX $version" \
        "$venvs/jax-$version/bin/python" -m pytest -q -n 2 --dist worksteal "${ignored[@]}"
done

if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: $(printf '%s; ' "${failed[@]}" | sed 's/; $//')"
    exit 1
fi
say "all checks and tests passed on JAX ${versions// /, }, and kernels run on ${between// /, }"
