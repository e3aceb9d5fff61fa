#!/usr/bin/env bash
# Perplexity of a trained model, on the CPU, with ../wikitext103/evaluate.sh.
#
#   evaluate.sh SAVE_DIR [fairseq-eval-lm options...]
#
# SAVE_DIR is what train.sh wrote. Prints perplexity and tokens of each split, and writes
# SAVE_DIR/evaluation. The options replace the recipe's own.
#
# Environment:
#   DATA_DIR        what prepare.sh made (default: data/wikitext2 in the project)
#   SPLITS          which (default: "valid test")
#   SMOKE=1         with what SMOKE=1 prepare.sh made
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# -ge 1 ] || { usage >&2 && exit 2; }
save=$1
shift
export DATA_DIR=${DATA_DIR:-$data_root}
exec "$root/recipes/wikitext103/evaluate.sh" "$save" --cpu "$@"
