# Sourced by the recipes' scripts: says where things are and how to speak to the user.
#
# Sets root (the project), plugin (for --user-dir), recipe (the calling script's folder's name),
# data_root and save_root (where its data and its trainings are by default) and smoke, puts the
# project's .venv first on PATH where there is one, and answers -h and --help with the comment at
# the top of the calling script.
#
# With SMOKE=1 smoke is 1 instead of 0, the folders are others, and there is no GPU: a rehearsal with
# a tiny model and a few updates, on data that prepare.sh makes up where it is given none.
# shellcheck shell=bash disable=SC2034  # what it sets is used by the recipes

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
plugin=$root/sigma_fairseq
recipe=$(basename "$(cd "$(dirname "$0")" && pwd)")
data_root=$root/data/$recipe save_root=$root/runs/$recipe smoke=0
if [ "${SMOKE:-0}" != 0 ]; then
    data_root=$root/data/smoke/$recipe save_root=$root/runs/smoke/$recipe smoke=1
    export CPU=1 CUDA_VISIBLE_DEVICES=
fi
[ ! -x "$root/.venv/bin/python3" ] || PATH=$root/.venv/bin:$PATH
# fairseq and what it brings warn at every start, of nothing that a user could change.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

usage() { sed -n '/^#SBATCH/d; 2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
say() { printf '%s: %s\n' "$recipe" "$*"; }
die() {
    printf '%s: error: %s\n' "$recipe" "$*" >&2
    exit 1
}

smoke_data() { # makes up what prepare.sh reads, and prints where it is
    # To find out that it is there would take Python some seconds.
    [ -d "$data_root.raw" ] || python3 "$root/scripts/smoke_data.py" "$recipe" "$data_root.raw" >&2
    echo "$data_root.raw"
}

no_colon() { # fairseq takes a path with a colon for a list of paths
    case $1 in
        *:*) die "fairseq cannot read a path with a colon: $1" ;;
    esac
}

whole_seed() { # whole_seed SEED
    case $1 in
        '' | *[!0-9]*) die "the seed must be a whole number, not '$1'" ;;
    esac
}

has_sum() { # has_sum FILE SUMS ALGORITHM: whether SUMS has the file's name beside its sum
    [ -f "$1" ] && python3 - "$@" <<'PYTHON'
import hashlib, os, sys
path, sums, algorithm = sys.argv[1:]
with open(path, "rb") as stream:
    digest = hashlib.file_digest(stream, algorithm).hexdigest()
sys.exit(f"{digest}  {os.path.basename(path)}" not in open(sums).read().splitlines())
PYTHON
}

fetch() { # fetch URL FILE SUMS ALGORITHM: goes on with a file that was fetched in part, and keeps none whose sum is wrong
    local url=$1 name
    shift
    name=$(basename "$1")
    ! has_sum "$@" || return 0
    say "fetching $name"
    curl --fail --location --continue-at - --output "$1" "$url" ||
        die "$url: not fetched; run again to go on"
    has_sum "$@" || {
        rm "$1"
        die "$url: not what was published (its $3 is wrong); deleted, run again"
    }
}

extract() { # extract ARCHIVE: unpacks a tar archive into ARCHIVE.part, and nothing outside of that
    say "unpacking $(basename "$1")"
    rm -rf "$1.part"
    mkdir "$1.part"
    python3 -m tarfile --filter data --extract "$1" "$1.part" 2>"$1.messages" ||
        die "$(basename "$1"): $(tail -n 1 "$1.messages")"
    rm "$1.messages"
}

train_or_resume() { # train_or_resume SAVE_DIR WHAT COMMAND...: runs it, goes on with it, or leaves it where it has ended
    local save=$1 what=$2 line
    shift 2
    # Resumed after its last update, fairseq would make one more: what has ended is left alone.
    line=$(printf '%q ' "$@")
    if [ -f "$save/finished.txt" ] && [ "$(cat "$save/finished.txt")" = "$line" ]; then
        say "$save: this run has ended; see train.log there"
        exit 0
    fi
    # Of several nodes the first one keeps the log.
    [ "${SLURM_NODEID:-0}" = 0 ] || exec "$@"
    mkdir -p "$save"
    rm -f "$save/finished.txt"
    if [ -f "$save/checkpoint_last.pt" ]; then
        say "resuming $what, in $save"
    else
        say "training $what, in $save"
    fi
    say "$line" | tee -a "$save/train.log"
    "$@" 2>&1 | tee -a "$save/train.log" || stopped "${PIPESTATUS[0]}" "$save"
    printf '%s\n' "$line" >"$save/finished.txt"
}

stopped() { # stopped STATUS SAVE_DIR: ends with the status of a training, if it failed, and says what is left
    local how="stopped with status $1" left="$2/checkpoint_last.pt"
    case $1 in
        0) return ;;
        3) how+=" by --on-collapse" ;;
    esac
    if [ -f "$left" ]; then
        left+=" is there: the same command goes on from it"
    else
        left="no checkpoint yet: the same command begins anew"
    fi
    say "$how; $left" >&2
    exit "$1"
}

train_on_nodes() { # train_on_nodes ARGUMENT...: runs the recipe's train.sh on every node of a SLURM job
    local port
    [ -n "${SLURM_JOB_ID:-}" ] || die "start this script by sbatch"
    # Without a port fairseq takes each node for the only one. It must not depend on the job: what
    # has ended is known by its command line.
    port=$((20000 + $(cksum <<<"$*" | cut -d ' ' -f 1) % 10000))
    export NGPUS=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))
    srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
        "$root/recipes/$recipe/train.sh" "$@" --distributed-port "$port"
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
