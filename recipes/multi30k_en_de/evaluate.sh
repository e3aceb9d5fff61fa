#!/usr/bin/env bash
# Translates the validation and the test set with a trained model and scores the translations.
#
#   evaluate.sh SAVE_DIR [fairseq-generate options...]
#
# SAVE_DIR is what train.sh wrote; its checkpoint with the best perplexity on the validation set is
# taken, with beam 5. Options replace the recipe's own. Prints, for valid and test_2016_flickr,
# fairseq's BLEU (words between spaces, punctuation attached) and sacreBLEU with its signature, and
# writes to SAVE_DIR/evaluation
#   scores.json             the same figures
#   hypotheses.NAME.de      plain text, one translation a line
#   generate-SPLIT.txt      what fairseq-generate wrote
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/multi30k_en_de in the project)
#   SMOKE=1         on the CPU, with what SMOKE=1 prepare.sh made
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 1 ] || { usage >&2 && exit 2; }
save=${1%/}
shift
data=${DATA_DIR:-$data_root}
no_colon "$data"
no_colon "$save"
[ -f "$data/prepared.txt" ] || die "$data: no prepared data; run prepare.sh first"
checkpoint=$save/checkpoint_best.pt
[ -f "$checkpoint" ] || die "$checkpoint: no such file; run train.sh first"

out=$save/evaluation
part=$out.part
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$part"
mkdir "$part"

# By default fairseq leaves out the last sentences of a set, up to a multiple of 8.
for split in valid test; do
    say "translating $split with $checkpoint"
    fairseq-generate "$data/bin" --user-dir "$plugin" --source-lang en --target-lang de \
        --beam 5 --post-process sentencepiece --num-workers 0 --no-progress-bar "$@" \
        --required-batch-size-multiple 1 \
        --path "$checkpoint" --gen-subset "$split" --results-path "$part" \
        >"$part/messages.txt" 2>&1 || { tail -n 20 "$part/messages.txt" >&2 && exit 1; }
done
rm "$part/messages.txt"
python3 "$root/scripts/translation_scores.py" --language de \
    --split valid "$part/generate-valid.txt" "$data/text/valid.de" \
    --split test_2016_flickr "$part/generate-test.txt" "$data/text/test.de" \
    "$part"

rm -rf "$out"
mv "$part" "$out"
say "done: $out"
