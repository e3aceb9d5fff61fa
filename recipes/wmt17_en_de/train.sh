#!/usr/bin/env bash
# Trains one architecture with one seed on what prepare.sh made, as in Table 10.
#
#   train.sh ARCH SEED [fairseq-train options...]
#
# ARCH is transformer_{preln,postln,deepnorm,reparam_postln,reparam_deepnorm}_{6,18,50,100}l.
# The options come last on fairseq's command line and so replace the recipe's own. Run again with
# the same arguments, the script resumes where it was stopped, and does nothing where it had ended.
# An update is of 524,288 tokens, on however many GPUs.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/wmt17_en_de in the project)
#   SAVE_DIR        for checkpoints and train.log (default: runs/wmt17_en_de/ARCH/seedSEED there)
#   NGPUS           how many GPUs (default: all that PyTorch sees)
#   MAX_TOKENS      tokens on a GPU at a time (default: 16384, 8192 with 50 layers and 4096 with 100);
#                   with fewer, more gradients are accumulated
#   CPU=1           train on the CPU
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

case $arch in
    transformer_preln_* | transformer_postln_* | transformer_deepnorm_*) rate=1.4e-3 ;;
    transformer_reparam_postln_* | transformer_reparam_deepnorm_*) rate=4.5e-3 ;;
    *) die "no such architecture of Table 10: '$arch'" ;;
esac
# Tokens are the paper's 524,288 by its 8 GPUs and its accumulation, 4, 8 or 16.
case $arch in
    *_6l | *_18l) tokens=16384 every=250 ;;
    *_50l) tokens=8192 every=100 ;;
    *_100l) tokens=4096 every=100 ;;
    *) die "no such architecture of Table 10: '$arch'" ;;
esac
batch=524288 tokens=${MAX_TOKENS:-$tokens}
if [ "${CPU:-0}" != 0 ]; then
    gpus=1 device=(--cpu --num-workers 0)
else
    gpus=${NGPUS:-$(python3 -c 'import torch; print(torch.cuda.device_count())')}
    [ "$gpus" != 0 ] || die "no GPU; CPU=1 trains on the CPU"
    device=(--amp --distributed-world-size "$gpus")
fi
case " $gpus $tokens" in
    *" 0"* | *[!\ 0-9]*) die "NGPUS and MAX_TOKENS must be whole numbers from 1 on" ;;
esac
accumulated=$((batch / (gpus * tokens)))
[ $((accumulated * gpus * tokens)) = "$batch" ] ||
    die "$gpus GPUs of $tokens tokens do not divide a batch of $batch; change NGPUS or MAX_TOKENS"
[ "$gpus" = 8 ] || [ $smoke != 0 ] ||
    say "$batch tokens an update: $gpus x $tokens, --update-freq $accumulated" >&2

settings=(
    --task translation --source-lang en --target-lang de --share-all-embeddings
    --criterion monitored_label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-8 --weight-decay 1e-4
    --lr "$rate" --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-7
    --clip-norm 0 --dropout 0.4 --max-update 100000
    --max-tokens "$tokens" --update-freq "$accumulated" "${device[@]}"
    # By default fairseq leaves out the last sentences of every set, up to a multiple of 8.
    --required-batch-size-multiple 1
    --log-format json --log-interval 100
    # Epochs are long: validated and saved by updates, some ten or twenty minutes of them.
    --save-interval 1000000 --validate-interval 1000000 --no-epoch-checkpoints
    --save-interval-updates "$every" --keep-interval-updates 1 --best-checkpoint-metric ppl
)
[ $smoke = 0 ] || settings+=(
    --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32
    --encoder-attention-heads 2 --decoder-attention-heads 2 --max-tokens 2000 --update-freq 1
    --warmup-updates 5 --max-update 20 --save-interval-updates 10 --log-interval 1
)
run=(
    fairseq-train "$data/bin" --user-dir "$plugin" --arch "$arch" --seed "$seed"
    --save-dir "$save" "${settings[@]}" "$@"
)

if [ "${DRY_RUN:-0}" != 0 ]; then
    printf '%q ' "${run[@]}" && echo
    exit 0
fi
train_or_resume "$save" "$arch, seed $seed" "${run[@]}"
say "done: $save/checkpoint_best.pt has the best perplexity on newstest2016"
