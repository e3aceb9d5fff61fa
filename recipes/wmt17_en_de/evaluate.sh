#!/usr/bin/env bash
# Translates newstest2016 (valid) and newstest2017 (test) with trained models and scores them.
#
#   evaluate.sh SAVE_DIR... [fairseq-generate options...]
#
# A SAVE_DIR is what train.sh wrote; its checkpoint with the best perplexity on newstest2016 is
# taken, with beam 5. Options replace the recipe's own. Prints fairseq's BLEU, which is of words as
# they were tokenized, the paper's, and sacreBLEU with its signature, which is of plain text, and
# writes to SAVE_DIR/evaluation
#   scores.json             the same figures
#   hypotheses.SET.de       plain text, one translation a line
#   generate-SET.txt        what fairseq-generate wrote
# Several folders are seeds of one training: the last lines are mean and standard deviation of those
# that did not diverge, and DV, how many did, by train.log and the rule of sigma_fairseq/verdict.py. A
# training without a checkpoint or that goes on is judged by what it did so far.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/wmt17_en_de in the project)
#   SMOKE=1         on the CPU, with what SMOKE=1 prepare.sh made
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

saves=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    saves+=("${1%/}")
    shift
done
[ ${#saves[@]} != 0 ] || { usage >&2 && exit 2; }
data=${DATA_DIR:-$data_root}
no_colon "$data"
[ -f "$data/prepared.txt" ] || die "$data: no prepared data; run prepare.sh first"
bpe=sentencepiece tokenized=
[ -f "$data/spm.model" ] || bpe=subword_nmt tokenized=--moses
for save in "${saves[@]}"; do
    no_colon "$save"
    [ -f "$save/train.log" ] || die "$save/train.log: no such file; run train.sh first"
done

trap 'rm -rf "${saves[@]/%//evaluation.part}"' EXIT
trap 'exit 1' HUP INT TERM

translate() { # translate SAVE_DIR: fills its evaluation folder
    local checkpoint=$1/checkpoint_best.pt out=$1/evaluation split
    local part=$out.part
    rm -rf "$part"
    mkdir "$part"
    # By default fairseq leaves out the last sentences of a set, up to a multiple of 8.
    for split in valid test; do
        say "translating $split with $checkpoint"
        fairseq-generate "$data/bin" --user-dir "$plugin" --source-lang en --target-lang de \
            --beam 5 --post-process "$bpe" --num-workers 0 --no-progress-bar \
            ${options[@]+"${options[@]}"} --required-batch-size-multiple 1 \
            --path "$checkpoint" --gen-subset "$split" --results-path "$part" \
            >"$part/messages.txt" 2>&1 || { tail -n 20 "$part/messages.txt" >&2 && exit 1; }
    done
    rm "$part/messages.txt"
    python3 "$root/scripts/translation_scores.py" --language de ${tokenized:+"$tokenized"} \
        --split valid "$part/generate-valid.txt" "$data/text/valid.de" \
        --split test "$part/generate-test.txt" "$data/text/test.de" "$part"
    rm -rf "$out"
    mv "$part" "$out"
    say "done: $out"
}

options=("$@")
for save in "${saves[@]}"; do
    if [ -f "$save/checkpoint_best.pt" ]; then
        translate "$save"
    else
        say "$save: no checkpoint_best.pt to translate with"
    fi
done
python3 "$root/scripts/seed_scores.py" "${saves[@]}"
