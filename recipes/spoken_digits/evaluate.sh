#!/usr/bin/env bash
# Scores a trained model with ../librispeech/evaluate.sh, greedily and with lexicon and trigrams.
#
#   evaluate.sh SAVE_DIR [fairseq-generate options...]
#
# SAVE_DIR is what train.sh wrote. Prints word and character error rates on dev-clean, test-clean
# and test-other (a speaker that no other set has), and writes SAVE_DIR/evaluation/greedy and
# SAVE_DIR/evaluation/lexicon.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/spoken_digits in the project)
#   SETS            which (default: all three)
#   SMOKE=1         with what SMOKE=1 prepare.sh made, dev-clean alone
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 1 ] || { usage >&2 && exit 2; }
save=${1%/}
shift
prepared=${DATA_DIR:-$data_root}
export DATA_DIR=$prepared/data
[ $smoke = 0 ] || export SETS=${SETS:-dev-clean}

for decoder in greedy lexicon; do
    options=(--cpu --num-workers 0 --decoder "$decoder")
    [ "$decoder" = greedy ] || options+=(
        --lexicon "$prepared/lexicon.txt" --lm "$prepared/lm.arpa" --lm-weight 1 --beam 50
    )
    OUT_DIR=$save/evaluation/$decoder "$root/recipes/librispeech/evaluate.sh" "$save" \
        "${options[@]}" "$@"
done
