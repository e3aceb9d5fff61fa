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
#   SMOKE=1         a rehearsal: a tiny model and few updates on the CPU, with what SMOKE=1 prepare.sh
#                   made; saves in runs/smoke
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 4 ] || { usage >&2 && exit 2; }
arch=$1 seed=$2 rate=$3 decay=$4
shift 4
export DATA_DIR=${DATA_DIR:-$data_root}
export SAVE_DIR=${SAVE_DIR:-$save_root/$arch/lr$rate-wd$decay/seed$seed}

settings=(
    # PyTorch's attention for the CPU has no dropout; with it, a slower one is used.
    --dropout 0.1 --attention-dropout 0 --activation-dropout 0 --adaptive-softmax-dropout 0.1
    --log-interval 50 --monitor-interval 50
)
[ $smoke != 0 ] || settings+=(
    --decoder-layers 6 --decoder-embed-dim 64 --decoder-ffn-embed-dim 256
    --decoder-attention-heads 4
    --adaptive-input-cutoff 2000,6000 --adaptive-softmax-cutoff 2000,6000
    --max-tokens 2048 --update-freq 1 --max-update 600
    # One half-wave after the warmup, down to --min-lr at the last update.
    --warmup-updates 100 --lr-period-updates -1
    # With the first alone, fairseq does not validate where an epoch ends with that update.
    --save-interval-updates 200 --validate-interval-updates 200
)
case $arch in
    # As large as fairseq's weights are in the model of full width; at width 64 they are larger.
    *_reparam_*) settings+=(--reparam-init-std 0.02) ;;
esac
CPU=1 exec "$root/recipes/wikitext103/train.sh" \
    "$arch" "$seed" "$rate" "$decay" "${settings[@]}" "$@"
