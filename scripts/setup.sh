#!/usr/bin/env bash
# Makes .venv in the project root with everything that the tests and the demo need.
#
#   scripts/setup.sh                         first of python3.11, python3.12, python3 that fits
#   PYTHON=/path/to/python scripts/setup.sh  that interpreter (3.11 or 3.12) and no other
#
# A finished set-up leaves a stamp: a checksum of setup.py and requirements.lock and the place it
# was made in. With a fitting stamp the script ends at once; without one it starts afresh.
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PY=.venv/bin/python MARK=.venv/.made-by-setup STAMP=.venv/.setup-done

# The caller's Python and make settings are not ours; uv must never look for, or fetch, a Python.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX MAKEFLAGS MFLAGS MAKELEVEL
unset UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX
export UV_PYTHON_DOWNLOADS=never

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

step() { # step WHAT COMMAND...: says what is done, does it, and stops where it fails
    local what=$1
    shift
    say "$what"
    "$@" || die "failed while $what; see above, then run 'make setup' again"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" requirements.lock; }

fingerprint() { printf '%s %s\n' "$(cat setup.py requirements.lock | cksum)" "$PWD"; }

finished() {
    local now
    [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ] || return 1
    now=$(version_of "$PY") || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$now" ]
}

why_not() { # what keeps this interpreter from being used; nothing if it fits
    local version
    command -v "$1" >/dev/null 2>&1 || { echo "not found" && return; }
    version=$(version_of "$1") || { echo "does not run" && return; }
    case $version in
        3.11 | 3.12) ;;
        *) echo "is $version" && return ;;
    esac
    "$1" -c 'import ensurepip, venv' 2>/dev/null || { echo "has no venv module" && return; }
    "$1" - 2>/dev/null <<'PROBE' || echo "has no header files (Python.h)"
import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))
PROBE
}

find_python() { # sets python
    local candidate reason reasons=
    local -a candidates=(python3.11 python3.12 python3)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        reason=$(why_not "$candidate")
        [ -n "$reason" ] || { python=$candidate && return; }
        reasons+="${reasons:+, }$candidate $reason"
    done
    die "no suitable Python: need 3.11 or 3.12 with venv and header files ($reasons);" \
        "name one with PYTHON=/path/to/python"
}

find_compiler() { # sets and exports CXX
    local candidate
    if [ -n "${CXX:-}" ]; then
        command -v "${CXX%% *}" >/dev/null 2>&1 || die "no C++ compiler: CXX=$CXX is not found"
        return
    fi
    for candidate in c++ g++ clang++; do
        if command -v "$candidate" >/dev/null 2>&1; then
            export CXX=$candidate
            [ "$candidate" != clang++ ] || export CC=${CC:-clang}
            return
        fi
    done
    die "no C++ compiler: need c++, g++ or clang++ on PATH, or CXX=/path/to/compiler"
}

take_pip_certificates() { # uv does not read pip's settings
    local cert
    cert=$("$PY" -m pip config list 2>/dev/null |
        sed -nE "s/^(:env:|global|install)\.cert='(.*)'$/\2/p" | head -n 1) || return 0
    if [ -n "$cert" ] && [ -z "${SSL_CERT_FILE:-}" ]; then
        export SSL_CERT_FILE=$cert
    fi
}

uv_install() { .venv/bin/uv pip install --quiet --python "$PY" -c requirements.lock "$@"; }

# Always from source: the wheel that is published for 3.12 was built with an older torch and does not
# load with this one. uv keeps what it builds; the setting names the torch it was built against, so
# that a build against another one is never taken. The extra config file keeps what an interrupted
# build left behind out of the next one. With CUDA_HOME set fairseq would compile kernels that
# nothing here uses.
readonly -a FROM_SOURCE=(
    --no-binary fairseq-fixed
    --no-build-isolation-package fairseq-fixed
    --config-settings-package "fairseq-fixed:built-against-torch=$(pinned torch)"
)
install_fairseq() {
    printf '[build]\nbuild_base = %s/.venv/.build\n' "$PWD" >.venv/.build.cfg
    DIST_EXTRA_CONFIG=$PWD/.venv/.build.cfg env -u CUDA_HOME -u READTHEDOCS \
        .venv/bin/uv pip install --quiet --python "$PY" -c requirements.lock \
        "${FROM_SOURCE[@]}" --no-deps fairseq-fixed || return
    rm -rf .venv/.build .venv/.build.cfg
}

check_fairseq() { # the compiled parts load
    "$PY" -I -W ignore -c '
import torch, torchaudio, torchvision
import alignment_train_cpu_binding
from fairseq import libbase, libbleu, libnat
from fairseq.data import data_utils_fast, token_block_utils_fast
' >.venv/.check.log 2>&1 || { tail -n 5 .venv/.check.log >&2 && return 1; }
    rm .venv/.check.log
}

if finished; then
    touch "$STAMP"
    say ".venv is up to date"
    exit 0
fi

# One set-up at a time in one place; what an interrupted one left running ends first.
if command -v flock >/dev/null 2>&1; then
    exec 9<.
    flock -n 9 || { say "waiting for another set-up that runs here" && flock 9; }
    ! finished || { say ".venv is up to date" && exit 0; }
fi

find_python
find_compiler
if [ -d .venv ] && [ ! -e "$MARK" ] && [ -n "$(ls -A .venv)" ]; then
    die "the .venv here was not made by this script; delete it or move it away, then try again"
fi

mkdir -p .venv
touch "$MARK"
rm -f "$STAMP"
[ ! -e "$PY" ] || say "clearing the .venv of before, which is unfinished or out of date"
find .venv -mindepth 1 -maxdepth 1 ! -path "$MARK" -exec rm -rf {} +

step "making .venv with Python $(version_of "$python")" "$python" -m venv .venv
take_pip_certificates
step "installing uv" \
    "$PY" -m pip install --quiet --disable-pip-version-check "uv==$(pinned uv)"
step "installing torch and what fairseq is built with (the first time this downloads 3 GB)" \
    uv_install torch numpy cython wheel ninja setuptools
step "compiling fairseq-fixed against this torch (about 2 minutes, less where uv has it already)" \
    install_fairseq
step "installing the rest of requirements.lock" \
    uv_install "${FROM_SOURCE[@]}" -r requirements.lock
step "installing sigma-fairseq itself" \
    uv_install --no-deps --no-build-isolation -e .
step "checking that fairseq loads" check_fairseq

fingerprint >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
say "done: .venv is ready"
