#!/usr/bin/env bash
# Trains one architecture with one seed, learning rate and weight decay on what prepare.sh made, as
# in Appendix G.
#
#   train.sh ARCH SEED LR WEIGHT_DECAY [fairseq-train options...]
#
# ARCH is transformer_lm_{postln,preln,reparam_noln}_wiki103_{16,32}l.
# The options come last on fairseq's command line and so replace the recipe's own. Run again with
# the same arguments, the script resumes where it was stopped, and does nothing where it had ended.
# An update is of 73,728 tokens, on however many GPUs.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/wikitext103 in the project)
#   SAVE_DIR        for checkpoints, train.log and the dictionary
#                   (default: runs/wikitext103/ARCH/lrLR-wdWEIGHT_DECAY/seedSEED there)
#   NGPUS           how many GPUs (default: all that PyTorch sees)
#   MAX_TOKENS      tokens on a GPU at a time, a multiple of 512 (default: 9216, which are 8 GPUs
#                   without accumulation); with fewer, more gradients are accumulated
#   CPU=1           train on the CPU
#   SMOKE=1         a rehearsal: a tiny model and few updates on the CPU, with what SMOKE=1 prepare.sh
#                   made; saves in runs/smoke
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 4 ] || { usage >&2 && exit 2; }
arch=$1 seed=$2 rate=$3 decay=$4
shift 4
case $arch in
    transformer_lm_postln_wiki103_16l | transformer_lm_postln_wiki103_32l) ;;
    transformer_lm_preln_wiki103_16l | transformer_lm_preln_wiki103_32l) ;;
    transformer_lm_reparam_noln_wiki103_16l | transformer_lm_reparam_noln_wiki103_32l) ;;
    *) die "no such architecture of a language model: '$arch'" ;;
esac
whole_seed "$seed"
number='^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$'
[[ $rate =~ $number ]] || die "the learning rate must be a number, not '$rate'"
[[ $decay =~ $number ]] || die "the weight decay must be a number, not '$decay'"
data=${DATA_DIR:-$data_root}
save=${SAVE_DIR:-$save_root/$arch/lr$rate-wd$decay/seed$seed}
no_colon "$data"
no_colon "$save"
[ -f "$data/prepared.txt" ] || die "$data: no prepared data; run prepare.sh first"

block=512 batch=73728 tokens=${MAX_TOKENS:-9216}
if [ "${CPU:-0}" != 0 ]; then
    gpus=1 device=(--cpu --num-workers 0)
else
    gpus=${NGPUS:-$(python3 -c 'import torch; print(torch.cuda.device_count())')}
    [ "$gpus" != 0 ] || die "no GPU; CPU=1 trains on the CPU"
    device=(--distributed-world-size "$gpus")
fi
case " $gpus $tokens" in
    *" 0"* | *[!\ 0-9]*) die "NGPUS and MAX_TOKENS must be whole numbers from 1 on" ;;
esac
[ $((tokens % block)) = 0 ] || die "MAX_TOKENS must be a multiple of $block, not $tokens"
accumulated=$((batch / (gpus * tokens)))
[ $((accumulated * gpus * tokens)) = "$batch" ] ||
    die "$gpus GPUs of $tokens tokens do not divide a batch of $batch; change NGPUS or MAX_TOKENS"

settings=(
    --task language_modeling --sample-break-mode none --tokens-per-sample "$block"
    # Adaptive softmax does not give every parameter a gradient in every update.
    --criterion monitored_adaptive_loss --ddp-backend legacy_ddp
    --optimizer nag --lr "$rate" --weight-decay "$decay" --clip-norm 0.1
    --lr-scheduler cosine --warmup-updates 16000 --warmup-init-lr 1e-7 --min-lr 1e-4
    --stop-min-lr 1e-9 --t-mult 2 --lr-period-updates 270000 --lr-shrink 0.75 --max-update 286000
    --max-tokens "$tokens" --update-freq "$accumulated" "${device[@]}"
    # By default fairseq leaves out the last blocks of every split, up to a multiple of 8.
    --required-batch-size-multiple 1
    --log-format json --log-interval 100
    # An epoch has 1,400 updates: validated and saved by updates instead.
    --save-interval 1000000 --validate-interval 1000000 --no-epoch-checkpoints
    --save-interval-updates 2000 --keep-interval-updates 1 --best-checkpoint-metric ppl
)
[ $smoke = 0 ] || settings+=(
    --decoder-layers 2 --decoder-embed-dim 16 --decoder-ffn-embed-dim 32 --decoder-attention-heads 2
    --adaptive-input-cutoff 16,64 --adaptive-softmax-cutoff 16,64
    --max-tokens 2048 --update-freq 1 --warmup-updates 2 --lr-period-updates -1 --max-update 10
    --save-interval-updates 5 --validate-interval-updates 5
)
run=(
    fairseq-train "$data/bin" --user-dir "$plugin" --arch "$arch" --seed "$seed"
    --save-dir "$save" "${settings[@]}" "$@"
)

if [ "${DRY_RUN:-0}" != 0 ]; then
    printf '%q ' "${run[@]}" && echo
    exit 0
fi
if [ -f "$save/dict.txt" ] && ! cmp -s "$data/bin/dict.txt" "$save/dict.txt"; then
    die "$data has another dictionary than the training in $save"
fi
mkdir -p "$save"
part=$save/dict.${SLURM_NODEID:-0}.part # a file for each node
cp "$data/bin/dict.txt" "$part"
mv "$part" "$save/dict.txt"
train_or_resume "$save" "$arch, learning rate $rate, weight decay $decay, seed $seed" "${run[@]}"
say "done: $save/checkpoint_best.pt has the best perplexity on the validation set"
