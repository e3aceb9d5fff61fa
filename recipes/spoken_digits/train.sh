#!/usr/bin/env bash
# Trains a narrow model on the CPU with ../librispeech/train.sh on what prepare.sh made.
#
#   train.sh ARCH {adagrad,lars} SEED [fairseq-train options...]
#
# The options replace the recipe's own.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/spoken_digits in the project)
#   SAVE_DIR        for checkpoints and train.log
#                   (default: runs/spoken_digits/ARCH/OPTIMIZER/seedSEED there)
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 3 ] || { usage >&2 && exit 2; }
arch=$1 optimizer=$2 seed=$3
shift 3
export DATA_DIR=${DATA_DIR:-$root/data/$recipe}/data
export SAVE_DIR=${SAVE_DIR:-$root/runs/$recipe/$arch/$optimizer/seed$seed}

settings=(
    --encoder-embed-dim 64 --encoder-ffn-embed-dim 256
    --dropout-input 0.1 --attention-dropout 0.1 --activation-dropout 0.1 --encoder-layerdrop 0.1
    --max-tokens 3000 --update-freq 1 --max-update 1500
    --log-interval 50 --save-interval-updates 250
)
case $optimizer in
    adagrad) settings+=(--warmup-updates 200) ;;
esac
CPU=1 exec "$root/recipes/librispeech/train.sh" 100h "$arch" "$optimizer" "$seed" \
    "${settings[@]}" "$@"
