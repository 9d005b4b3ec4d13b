#!/usr/bin/env bash
# The coder's tests and golden files from the built wheel, without JAX, on each Python version:
#   tests/versions.sh WHEEL 3.11 3.12 3.13
set -euo pipefail
wheel=$1
shift
for version in "$@"; do
    python=python$version
    if ! $python -c '' 2>/dev/null; then
        # pyenv keeps its versions off the path.
        python=$(ls -d "$(pyenv root 2>/dev/null)/versions/$version".*/bin/python 2>/dev/null | tail -1)
    fi
    [ -n "$python" ] || { echo "no Python $version here: install it, or leave it out" >&2; exit 1; }
    venv=.venv-$version
    [ -d "$venv" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade \
        pip pytest pytest-xdist hypothesis xarray 'dask[array]' fsspec pyarrow \
        threadpoolctl ml_dtypes
    "$venv/bin/python" -m pip install --quiet --force-reinstall --no-deps "$wheel"
    "$venv/bin/python" -m pip install --quiet "$wheel"
    "$venv/bin/python" --version
    # From another folder than the sources: the wheel is what is imported.
    (cd tests && "../$venv/bin/python" -I -c '
import importlib.util, coder, sys
assert "site-packages" in coder.__file__, coder.__file__
assert importlib.util.find_spec("jax") is None, "JAX is installed here"
assert coder.load("nec-vit-ti").num_qualities > 1
' && PYTHONPATH=. "../$venv/bin/python" -m pytest --confcutdir coder -p hypothesis_profile --rootdir . \
        -p no:cacheprovider coder | tail -1)
done
