#!/usr/bin/env bash
# Prepares WikiText-2, or text in its layout, with ../wikitext103/prepare.sh.
#
#   prepare.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds the corpus as it is published, words and not raw text:
#   wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens
#   (or train.txt, valid.txt and test.txt, or any of these with .gz)
# OUT_DIR (default: data/wikitext2 in the project) is made, and gets
#   bin/            binarized data, with a dictionary of all words of the training text
#   prepared.txt    what is in it; its presence says that all is there
#
# Environment:
#   SMOKE=1         a rehearsal on the CPU: without arguments, the script makes up a tiny corpus and
#                   prepares it in data/smoke/wikitext2
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# != 0 ] || [ $smoke = 0 ] || set -- "$(smoke_data)"
[ $# -ge 1 ] && [ $# -le 2 ] || { usage >&2 && exit 2; }
DOWNLOAD=0 exec "$root/recipes/wikitext103/prepare.sh" "$1" "${2:-$data_root}"
