#!/usr/bin/env bash
# Prepares Multi30k English-German for fairseq.
#
#   prepare.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds what the data set's repository holds in data/task1/raw:
#   {train,val,test_2016_flickr}.{en,de}.gz     (or the same files without .gz)
# OUT_DIR (default: data/multi30k_en_de in the project) is made, and gets
#   bin/            binarized data with one dictionary for both languages: train, valid, test
#   text/           the checked text; valid.de and test.de are the references for sacreBLEU
#   spm.model       the joint BPE model
#   prepared.txt    what it was made with; its presence says that all is there
# With a finished OUT_DIR the script says so and ends. The text is checked first, and OUT_DIR
# appears only when everything is done.
#
# Environment:
#   VOCABULARY      number of BPE pieces (default: 4000)
#   SMOKE=1         a rehearsal on the CPU: without arguments, the script makes up a tiny corpus and
#                   prepares it in data/smoke/multi30k_en_de
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# != 0 ] || [ $smoke = 0 ] || set -- "$(smoke_data)"
[ $# -ge 1 ] && [ $# -le 2 ] || { usage >&2 && exit 2; }
raw=$1
out=${2:-$data_root}
out=${out%/}
vocabulary=${VOCABULARY:-4000}
[ $smoke = 0 ] || vocabulary=${VOCABULARY:-100}
no_colon "$out"

if [ -f "$out/prepared.txt" ]; then
    say "$out is there already, made with: $(cat "$out/prepared.txt")"
    exit 0
fi
if [ -e "$out" ] && { [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; }; then
    die "$out exists and this script did not make it; move it away or name another folder"
fi
[ -d "$raw" ] || die "$raw: no such folder"

# Everything is made in a folder beside the output. One that a killed run left behind goes first.
mkdir -p "$(dirname "$out")"
part=$out.part
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$part"
mkdir -p "$part/text" "$part/pieces"

say "checking the text in $raw"
python3 "$root/scripts/parallel_text.py" --languages en de \
    --split "$raw/train" train --split "$raw/val" valid --split "$raw/test_2016_flickr" test \
    "$part/text"

say "learning $vocabulary BPE pieces"
python3 "$root/scripts/subwords.py" train --vocabulary "$vocabulary" --model "$part/spm.model" \
    "$part/text/train.en" "$part/text/train.de"
python3 "$root/scripts/subwords.py" encode --model "$part/spm.model" --out "$part/pieces" \
    "$part/text"/*

say "binarizing"
fairseq-preprocess --source-lang en --target-lang de --joined-dictionary \
    --trainpref "$part/pieces/train" --validpref "$part/pieces/valid" \
    --testpref "$part/pieces/test" --destdir "$part/bin" --workers 1 \
    >"$part/preprocess.txt" 2>&1 || { tail -n 20 "$part/preprocess.txt" >&2 && exit 1; }
rm -r "$part/pieces" "$part/preprocess.txt"

echo "$vocabulary joint BPE pieces" >"$part/prepared.txt"
[ ! -d "$out" ] || rmdir "$out"
mv "$part" "$out"
say "done: $out"
