#!/usr/bin/env bash
# Trains one architecture with one optimizer and seed on what prepare.sh made, as in Table 8.
#
#   train.sh {100h,960h} ARCH {adagrad,lars} SEED [fairseq-train options...]
#
# 100h trains on train-clean-100, 960h on all three training sets. ARCH is
#   ctc_transformer_{postln,preln}_{36,72}l or ctc_transformer_reparam_{postln,noln}_{36,72}l.
# The options come last on fairseq's command line and so replace the recipe's own. Run again with
# the same arguments, the script resumes where it was stopped, and does nothing where it had ended.
# An update is of 1920 s of audio (of 960 s with 72 layers), on however many GPUs.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/librispeech in the project)
#   SAVE_DIR        for checkpoints and train.log
#                   (default: runs/librispeech/HOURS/ARCH/OPTIMIZER/seedSEED there)
#   NGPUS           how many GPUs (default: all that PyTorch sees)
#   MAX_SECONDS     audio on a GPU at a time, padding included (default: 240; 120 with 72 layers);
#                   with less, more gradients are accumulated
#   SCHEDULE        step, or cosine (default: step)
#   CPU=1           train on the CPU
#   SMOKE=1         a rehearsal: a tiny model and few updates on the CPU, with what SMOKE=1 prepare.sh
#                   made; saves in runs/smoke
#   DRY_RUN=1       print fairseq's command line and end
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 4 ] || { usage >&2 && exit 2; }
hours=$1 arch=$2 optimizer=$3 seed=$4
shift 4
whole_seed "$seed"
data=${DATA_DIR:-$data_root}
save=${SAVE_DIR:-$save_root/$hours/$arch/$optimizer/seed$seed}
no_colon "$data"
no_colon "$save"
[ -f "$data/prepared.txt" ] || die "$data: no prepared data; run prepare.sh first"

case $hours in
    100h) train=train-clean-100 dropout=0.3 gamma_scale=1 ;;
    960h) train=train-clean-100,train-clean-360,train-other-500 dropout=0.1 gamma_scale=2 ;;
    *) die "the training data must be 100h or 960h, not '$hours'" ;;
esac
for set in ${train//,/ }; do
    [ -f "$data/$set.tsv" ] || die "$data/$set.tsv: no such file; $hours needs this set"
done
# The best checkpoint is the one with the best figure on the first of these sets.
valid=
for set in dev-clean dev-other; do
    [ ! -f "$data/$set.tsv" ] || valid=${valid:+$valid,}$set
done

case $arch-$optimizer in
    ctc_transformer_postln_*-adagrad) rate=0.03 ;;
    ctc_transformer_preln_*-adagrad) rate=0.5 ;;
    ctc_transformer_reparam_*-adagrad) rate=1 ;;
    ctc_transformer_postln_*-lars) rate=0.1 ;;
    ctc_transformer_preln_*-lars) rate=0.5 ;;
    ctc_transformer_reparam_noln_*-lars) rate=1 ;;
    ctc_transformer_reparam_postln_*-lars) rate=0.3 ;;
    *-adagrad | *-lars) die "no such speech architecture: '$arch'" ;;
    *) die "the optimizer must be adagrad or lars, not '$optimizer'" ;;
esac
case $optimizer in
    # fairseq counts the period from the end of the warmup on: halved at update 330k and 300k.
    adagrad) group=qk warmup=64000 period=266000 optimization=() ;;
    lars) group=qkv warmup=0 period=300000 optimization=(--momentum 0.9) ;;
esac
case ${SCHEDULE:-step} in
    step) schedule=(--lr-scheduler step --lr-deacy-period "$period" --lr-decay 0.5) ;;
    cosine) schedule=(--lr-scheduler cosine) ;; # one period, down to 0 at the last update
    *) die "SCHEDULE must be step or cosine, not '$SCHEDULE'" ;;
esac

case $arch in
    *_36l) batch=1920 seconds=${MAX_SECONDS:-240} ;;
    *_72l) batch=960 seconds=${MAX_SECONDS:-120} ;;
    *) die "no such speech architecture: '$arch'" ;;
esac
if [ "${CPU:-0}" != 0 ]; then
    gpus=1 device=(--cpu --num-workers 0)
else
    gpus=${NGPUS:-$(python3 -c 'import torch; print(torch.cuda.device_count())')}
    [ "$gpus" != 0 ] || die "no GPU; CPU=1 trains on the CPU"
    # Layer drop leaves parameters without a gradient.
    device=(
        --num-workers 4 --distributed-world-size "$gpus"
        --ddp-backend pytorch_ddp --find-unused-parameters
    )
    # The paper's "tensor cores fp32": fairseq has no option for it, PyTorch reads this.
    export TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=${TORCH_ALLOW_TF32_CUBLAS_OVERRIDE:-1}
fi
case " $gpus $seconds" in
    *" 0"* | *[!\ 0-9]*) die "NGPUS and MAX_SECONDS must be whole numbers from 1 on" ;;
esac
accumulated=$((batch / (gpus * seconds)))
[ $((accumulated * gpus * seconds)) = "$batch" ] ||
    die "$gpus GPUs of $seconds s do not divide a batch of $batch s; change NGPUS or MAX_SECONDS"

settings=(
    --task ctc_speech --train-subset "$train" --valid-subset "$valid"
    # Transcripts are checked to fit; should one not, its infinite loss must not end the training.
    --criterion monitored_ctc --zero-infinity --sentence-avg
    --dropout-input "$dropout" --attention-dropout "$dropout" --activation-dropout "$dropout"
    --encoder-layerdrop "$dropout"
    --optimizer "$optimizer" ${optimization[@]+"${optimization[@]}"}
    --weight-decay 0 --clip-norm 1 --lr "$rate"
    "${schedule[@]}" --warmup-updates "$warmup" --max-update 500000
    --max-tokens $((seconds * 100)) --update-freq "$accumulated" "${device[@]}"
    # By default fairseq leaves out the last utterances of every set, up to a multiple of 8.
    --required-batch-size-multiple 1
    --log-format json --log-interval 100
    # An epoch of 100 h has 188 updates: validated and saved by updates instead.
    --save-interval 1000000 --validate-interval 1000000 --no-epoch-checkpoints
    --save-interval-updates 2000 --keep-interval-updates 1 --best-checkpoint-metric wer
)
case $arch in
    *_reparam_*) settings+=(--reparam-qkv "$group" --gamma-lr-scale "$gamma_scale") ;;
esac
[ $smoke = 0 ] || settings+=(
    # Rates for a deep model send a tiny one anywhere, as rounding decides.
    --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --lr 0.01
    --max-tokens 4000 --update-freq 1 --warmup-updates 0 --max-update 6 --save-interval-updates 3
)
run=(
    fairseq-train "$data" --user-dir "$plugin" --arch "$arch" --seed "$seed"
    --save-dir "$save" "${settings[@]}" "$@"
)

if [ "${DRY_RUN:-0}" != 0 ]; then
    printf '%q ' "${run[@]}" && echo
    exit 0
fi
train_or_resume "$save" "$arch, $optimizer, seed $seed" "${run[@]}"
say "done: $save/checkpoint_best.pt has the best word error rate on ${valid%%,*}"
