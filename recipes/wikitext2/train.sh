#!/usr/bin/env bash
# Trains a narrow model on the CPU with ../wikitext103/train.sh on what prepare.sh made.
#
#   train.sh ARCH SEED LR WEIGHT_DECAY [fairseq-train options...]
#
# The options replace the recipe's own.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/wikitext2 in the project)
#   SAVE_DIR        for checkpoints, train.log and the dictionary
#                   (default: runs/wikitext2/ARCH/lrLR-wdWEIGHT_DECAY/seedSEED there)
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 4 ] || { usage >&2 && exit 2; }
arch=$1 seed=$2 rate=$3 decay=$4
shift 4
export DATA_DIR=${DATA_DIR:-$root/data/$recipe}
export SAVE_DIR=${SAVE_DIR:-$root/runs/$recipe/$arch/lr$rate-wd$decay/seed$seed}

settings=(
    --decoder-layers 6 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512
    --decoder-attention-heads 4
    --adaptive-input-cutoff 2000,6000 --adaptive-softmax-cutoff 2000,6000
    --max-tokens 2048 --update-freq 1 --max-update 1000
    # One half-wave after the warmup, down to --min-lr at the last update.
    --warmup-updates 100 --lr-period-updates -1
    --log-interval 50 --monitor-interval 50
    # With the first alone, fairseq does not validate where an epoch ends with that update.
    --save-interval-updates 200 --validate-interval-updates 200
)
CPU=1 exec "$root/recipes/wikitext103/train.sh" \
    "$arch" "$seed" "$rate" "$decay" "${settings[@]}" "$@"
