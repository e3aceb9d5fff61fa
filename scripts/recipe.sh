# Sourced by the recipes' scripts: says where things are and how to speak to the user.
#
# Sets root (the project), plugin (for --user-dir) and recipe (the calling script's folder's name),
# puts the project's .venv first on PATH where there is one, and answers -h and --help with the
# comment at the top of the calling script.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # used by the recipes
plugin=$root/sigma_fairseq
recipe=$(basename "$(cd "$(dirname "$0")" && pwd)")
[ ! -x "$root/.venv/bin/python3" ] || PATH=$root/.venv/bin:$PATH
# fairseq and what it brings warn at every start, of nothing that a user could change.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
say() { printf '%s: %s\n' "$recipe" "$*"; }
die() {
    printf '%s: error: %s\n' "$recipe" "$*" >&2
    exit 1
}

no_colon() { # fairseq takes a path with a colon for a list of paths
    case $1 in
        *:*) die "fairseq cannot read a path with a colon: $1" ;;
    esac
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
