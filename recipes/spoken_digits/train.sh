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
#   SCHEDULE        cosine, or step (default: cosine)
#   SMOKE=1         a rehearsal: a tiny model and few updates on the CPU, with what SMOKE=1 prepare.sh
#                   made; saves in runs/smoke
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 3 ] || { usage >&2 && exit 2; }
arch=$1 optimizer=$2 seed=$3
shift 3
export DATA_DIR=${DATA_DIR:-$data_root}/data
export SAVE_DIR=${SAVE_DIR:-$save_root/$arch/$optimizer/seed$seed}

# Chosen from two or three each by the training loss after 300 updates.
case $arch-$optimizer in
    ctc_transformer_postln_*-adagrad) rate=0.01 ;;
    ctc_transformer_preln_*-adagrad) rate=0.03 ;;
    *-adagrad) rate=0.015 ;;
    ctc_transformer_postln_*-lars) rate=0.1 ;;
    *) rate=0.3 ;;
esac
settings=(
    --config-yaml config_short.yaml
    # PyTorch's attention for the CPU has no dropout; with it, a slower one is used.
    --dropout-input 0.1 --activation-dropout 0.1 --attention-dropout 0 --encoder-layerdrop 0
    --lr "$rate" --log-interval 50 --monitor-interval 50
)
[ $smoke != 0 ] || settings+=(
    --encoder-layers 8 --encoder-embed-dim 48 --encoder-ffn-embed-dim 192
    --max-tokens 2000 --update-freq 1 --max-update 5000 --save-interval-updates 1000
)
case $optimizer in
    adagrad) settings+=(--warmup-updates 100) ;;
    lars) settings+=(--trust-coefficient 0.01) ;;
esac
case $arch-$optimizer in
    *_reparam_*-adagrad) settings+=(--gamma-lr-scale 5) ;;
esac
SCHEDULE=${SCHEDULE:-cosine} CPU=1 exec "$root/recipes/librispeech/train.sh" \
    100h "$arch" "$optimizer" "$seed" "${settings[@]}" "$@"
