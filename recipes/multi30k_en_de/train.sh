#!/usr/bin/env bash
# Trains one architecture with one seed on the data that prepare.sh made.
#
#   train.sh ARCH SEED [fairseq-train options...]
#
# ARCH is an architecture of this plugin, such as transformer_reparam_deepnorm_6l, or of fairseq.
# The options come last on fairseq's command line and so replace the recipe's own. Run again with
# the same arguments, the script resumes where it was stopped, and does nothing where it had ended.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/multi30k_en_de in the project)
#   SAVE_DIR        for checkpoints and train.log (default: runs/multi30k_en_de/ARCH/seedSEED there)
#   NARROW=1        a narrow model on the CPU, for two cores and no GPU
#   SMOKE=1         a rehearsal: a tiny model and few updates on the CPU, with what SMOKE=1 prepare.sh
#                   made; saves in runs/smoke
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 2 ] || { usage >&2 && exit 2; }
arch=$1 seed=$2
shift 2
whole_seed "$seed"
data=${DATA_DIR:-$data_root}
save=${SAVE_DIR:-$save_root/$arch/seed$seed}
no_colon "$data"
no_colon "$save"
[ -f "$data/prepared.txt" ] || die "$data: no prepared data; run prepare.sh first"

settings=(
    --task translation --source-lang en --target-lang de --share-all-embeddings
    --criterion monitored_label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-8
    --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7 --weight-decay 1e-4 --clip-norm 0
    --num-workers 0 --log-format json --log-interval 50
    --no-epoch-checkpoints --best-checkpoint-metric ppl
    # By default fairseq leaves out the last sentences of every set, up to a multiple of 8.
    --required-batch-size-multiple 1
)
if [ $smoke != 0 ]; then
    settings+=(
        --cpu --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32
        --encoder-attention-heads 2 --decoder-attention-heads 2
        --max-tokens 2000 --warmup-updates 5 --max-update 20
    )
    rate=3e-3 reparam_rate=4.5e-3
elif [ "${NARROW:-0}" != 0 ]; then
    settings+=(
        --cpu --encoder-embed-dim 128 --encoder-ffn-embed-dim 256
        --encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0.1
        --max-tokens 2048 --warmup-updates 300 --max-update 1500
    )
    rate=3e-3 reparam_rate=4.5e-3
else
    settings+=(--dropout 0.3 --max-tokens 4096 --warmup-updates 1000 --max-update 8000)
    rate=5e-4 reparam_rate=1.6e-3
fi
case $arch in
    *_reparam_*) rate=$reparam_rate ;;
esac
run=(
    fairseq-train "$data/bin" --user-dir "$plugin" --arch "$arch" --seed "$seed"
    --save-dir "$save" "${settings[@]}" --lr "$rate" "$@"
)

if [ "${DRY_RUN:-0}" != 0 ]; then
    printf '%q ' "${run[@]}" && echo
    exit 0
fi
train_or_resume "$save" "$arch, seed $seed" "${run[@]}"
say "done: $save/checkpoint_best.pt has the best perplexity on the validation set"
