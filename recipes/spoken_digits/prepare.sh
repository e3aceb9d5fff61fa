#!/usr/bin/env bash
# Builds a corpus in LibriSpeech's layout from recordings of single digits, and prepares it.
#
#   prepare.sh RECORDINGS [OUT_DIR]
#
# RECORDINGS is a tar archive or a folder of files DIGIT_SPEAKER_N.wav.
# OUT_DIR (default: data/spoken_digits in the project) gets
#   corpus/         utterances of 3 to 7 digits, as scripts/spoken_digits.py describes them
#   data/           features and manifests, made by ../librispeech/prepare.sh
#   lexicon.txt     the words of the training transcripts in letters
#   lm.arpa         a trigram model of these transcripts
# What is there already is not made again.
#
# Environment:
#   SMOKE=1         a rehearsal on the CPU: without arguments, the script makes up a tiny corpus and
#                   prepares it in data/smoke/spoken_digits
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# != 0 ] || [ $smoke = 0 ] || set -- "$(smoke_data)"
[ $# -ge 1 ] && [ $# -le 2 ] || { usage >&2 && exit 2; }
recordings=$1
out=${2:-$data_root}
out=${out%/}
no_colon "$out"

mkdir -p "$out"
if [ ! -d "$out/corpus" ]; then
    say "joining the recordings in $recordings"
    python3 "$root/scripts/spoken_digits.py" "$recordings" "$out/corpus"
fi
FEATURES=1 "$root/recipes/librispeech/prepare.sh" "$out/corpus" "$out/data"
# Masks made for utterances of fifteen seconds leave too little of three.
sed -e 's/freq_mask_F: .*/freq_mask_F: 10/' -e 's/time_mask_N: .*/time_mask_N: 1/' \
    "$out/data/config.yaml" >"$out/data/config_short.yaml"
if [ ! -f "$out/lm.arpa" ]; then
    say "estimating the language model"
    trap 'rm -f "$out/lm.text" "$out/lm.part"' EXIT
    tail -n +2 "$out/data/train-clean-100.tsv" | cut -f 4 >"$out/lm.text"
    python3 "$root/scripts/ngram_lm.py" --order 3 --lexicon "$out/lexicon.txt" \
        "$out/lm.text" "$out/lm.part"
    mv "$out/lm.part" "$out/lm.arpa"
fi
say "done: $out"
