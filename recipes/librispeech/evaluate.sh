#!/usr/bin/env bash
# Transcribes every dev and test set with a trained model and scores the words.
#
#   evaluate.sh SAVE_DIR [fairseq-generate options...]
#
# SAVE_DIR is what train.sh wrote; its checkpoint with the best word error rate is taken, and decoded
# greedily. The options come last on fairseq's command line; for a beam search over words:
#   --decoder lexicon --lexicon FILE --lm FILE --lm-weight 2 --word-score 0 --beam 100 [--nbest 5]
# Prints word and character error rates with substitutions, deletions and insertions, and writes to
# SAVE_DIR/evaluation
#   scores.json              the same figures
#   SET.tsv                  each reference and hypothesis
#   SET.hyp.trn, SET.ref.trn the same for sclite
#   generate-SET.txt         what fairseq-generate wrote
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/librispeech in the project)
#   SETS            which (default: every dev and test set that prepare.sh had)
#   OUT_DIR         a new folder instead of SAVE_DIR/evaluation
#   SMOKE=1         on the CPU, with what SMOKE=1 prepare.sh made
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 1 ] || { usage >&2 && exit 2; }
save=${1%/}
shift
data=${DATA_DIR:-$data_root}
out=${OUT_DIR:-$save/evaluation}
out=${out%/}
no_colon "$data"
no_colon "$save"
[ -f "$data/prepared.txt" ] || die "$data: no prepared data; run prepare.sh first"
checkpoint=$save/checkpoint_best.pt
[ -f "$checkpoint" ] || die "$checkpoint: no such file; run train.sh first"
# shellcheck disable=SC2016  # sed's own $
sets=${SETS:-$(sed -n '/^train/!s/\.tsv$//p' "$data/prepared.txt")}
for set in $sets; do
    [ -f "$data/$set.tsv" ] || die "$data/$set.tsv: no such file"
done

part=$out.part
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$part"
mkdir -p "$part"

splits=()
for set in $sets; do
    say "transcribing $set with $checkpoint"
    # By default fairseq leaves out the last utterances of a set, up to a multiple of 8.
    fairseq-generate "$data" --user-dir "$plugin" --task ctc_speech --scoring wer \
        --max-tokens 24000 --num-workers 2 --no-progress-bar "$@" \
        --required-batch-size-multiple 1 \
        --path "$checkpoint" --gen-subset "$set" --results-path "$part" \
        >"$part/messages.txt" 2>&1 || { tail -n 20 "$part/messages.txt" >&2 && exit 1; }
    splits+=(--split "$set" "$part/generate-$set.txt" "$data/$set.tsv")
done
rm "$part/messages.txt"
python3 "$root/scripts/speech_scores.py" "${splits[@]}" "$part"

rm -rf "$out"
mv "$part" "$out"
say "done: $out"
