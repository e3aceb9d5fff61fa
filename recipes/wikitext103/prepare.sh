#!/usr/bin/env bash
# Prepares WikiText-103, or text in its layout, for fairseq's task language_modeling.
#
#   prepare.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds the corpus as it is published, words and not raw text:
#   wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, here or in wikitext-103/
#   (or train.txt, valid.txt and test.txt, or any of these with .gz)
# OUT_DIR (default: data/wikitext103 in the project) is made, and gets
#   bin/            binarized data, with a dictionary of all words of the training text
#   prepared.txt    what is in it; its presence says that all is there
# With a finished OUT_DIR the script says so and ends. The text is checked first, and OUT_DIR
# appears only when everything is done.
#
# Environment:
#   DOWNLOAD=1      fetch the corpus into RAW_DIR/wikitext-103 first, 190 MB: resumed where it
#                   stopped, checked against sha256.txt beside this script
#   MIRROR          where from (default: https://wikitext.smerity.com, the first author's)
#   SMOKE=1         a rehearsal on the CPU: without arguments, the script makes up a tiny corpus and
#                   prepares it in data/smoke/wikitext103
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# != 0 ] || [ $smoke = 0 ] || set -- "$(smoke_data)"
[ $# -ge 1 ] && [ $# -le 2 ] || { usage >&2 && exit 2; }
raw=${1%/}
out=${2:-$data_root}
out=${out%/}
no_colon "$out"

if [ -f "$out/prepared.txt" ]; then
    say "$out is there already: $(cat "$out/prepared.txt")"
    exit 0
fi
if [ -e "$out" ] && { [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; }; then
    die "$out exists and this script did not make it; move it away or name another folder"
fi

if [ "${DOWNLOAD:-0}" != 0 ] && [ ! -d "$raw/wikitext-103" ]; then
    name=wikitext-103-v1.zip
    archive=$raw/$name
    mkdir -p "$raw"
    fetch "${MIRROR:-https://wikitext.smerity.com}/$name" "$archive" \
        "$(dirname "${BASH_SOURCE[0]}")/sha256.txt" SHA256
    say "unpacking $name"
    rm -rf "$archive.part"
    # A name that leads out of the folder is cut down to what stays in it.
    python3 -m zipfile --extract "$archive" "$archive.part" 2>"$archive.messages" ||
        die "$name: $(tail -n 1 "$archive.messages")"
    mv "$archive.part/wikitext-103" "$raw"
    rm -r "$archive" "$archive.part" "$archive.messages"
fi
[ -d "$raw" ] || die "$raw: no such folder"
[ ! -d "$raw/wikitext-103" ] || raw=$raw/wikitext-103

# Everything is made in a folder beside the output. One that a killed run left behind goes first.
mkdir -p "$(dirname "$out")"
part=$out.part
trap 'rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$part"
mkdir -p "$part/text"

say "checking the text in $raw"
python3 "$root/scripts/wikitext.py" "$raw" "$part/text"

say "binarizing"
fairseq-preprocess --only-source --trainpref "$part/text/train.txt" \
    --validpref "$part/text/valid.txt" --testpref "$part/text/test.txt" --destdir "$part/bin" \
    --workers "$(python3 -c 'import os; print(os.cpu_count())')" \
    >"$part/preprocess.txt" 2>&1 || { tail -n 20 "$part/preprocess.txt" >&2 && exit 1; }
words=$(sed -n 's/.*Dictionary: \([0-9]*\) types$/\1/p' "$part/preprocess.txt" | tail -n 1)
rm -r "$part/text" "$part/preprocess.txt"

echo "a dictionary of $words words" | tee "$part/prepared.txt"
[ ! -d "$out" ] || rmdir "$out"
mv "$part" "$out"
say "done: $out"
