#!/usr/bin/env bash
# Perplexity of a trained model, of the last 256 tokens of every 512, as in Table 12.
#
#   evaluate.sh SAVE_DIR [fairseq-eval-lm options...]
#
# SAVE_DIR is what train.sh wrote; its checkpoint with the best perplexity on the validation set is
# taken. A split is cut into pieces of 256 tokens, and each is predicted after the 256 before it.
# The options replace the recipe's own; --cpu evaluates on the CPU. Prints perplexity and tokens of
# each split, and writes to SAVE_DIR/evaluation
#   scores.json     the same figures
#   SPLIT.log       what fairseq-eval-lm wrote
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/wikitext103 in the project)
#   SPLITS          which (default: "valid test"; Table 12 has train, too)
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
cmp -s "$data/bin/dict.txt" "$save/dict.txt" ||
    die "$data has another dictionary than the training in $save"
splits=${SPLITS:-valid test}
for split in $splits; do
    [ -s "$data/bin/$split.bin" ] || die "$data/bin/$split.bin: no such file, or an empty one"
done

out=$save/evaluation
part=$out.part
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$part"
mkdir "$part"

# What comes before a piece is what its loader has seen last: one loader has to see them all.
for split in $splits; do
    say "evaluating $split with $checkpoint"
    fairseq-eval-lm "$data/bin" --user-dir "$plugin" --task language_modeling \
        --tokens-per-sample 512 --context-window 256 --sample-break-mode none \
        --max-tokens 4096 --softmax-batch 1024 --no-progress-bar "$@" \
        --num-workers 0 --path "$checkpoint" --gen-subset "$split" \
        >"$part/$split.log" 2>&1 || die "$split: $(tail -n 1 "$part/$split.log")"
done
# shellcheck disable=SC2086  # names of splits, one argument each
python3 "$root/scripts/perplexity_scores.py" --checkpoint "$checkpoint" "$part" $splits

rm -rf "$out"
mv "$part" "$out"
say "done: $out"
