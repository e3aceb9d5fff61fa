#!/usr/bin/env bash
# Prepares WMT'17 English-German for fairseq: cleaned as in fairseq's own preparation, in joint BPE
# pieces, binarized.
#
#   prepare.sh RAW_DIR [OUT_DIR]
#
# RAW_DIR holds what WMT publishes, in its archives or unpacked there:
#   training/europarl-v7.de-en.{en,de}          commoncrawl.de-en.{en,de}
#   training/news-commentary-v12.de-en.{en,de}  rapid2016.de-en.{en,de}
#   test/newstest2016-ende-{src.en,ref.de}.sgm  test/newstest2017-ende-{src.en,ref.de}.sgm
# OUT_DIR (default: data/wmt17_en_de in the project) is made, and gets
#   bin/            binarized data with one dictionary for both languages: train, valid, test
#   text/           newstest2016 (valid) and newstest2017 (test), plain: references for sacreBLEU
#   bpe.codes       the merges, or spm.model, sentencepiece's model
#   prepared.txt    what was kept and left out; its presence says that all is there
# With a finished OUT_DIR the script says so and ends. OUT_DIR appears only when everything is done;
# until then all is in OUT_DIR.part, and a script that was stopped goes on with the step it was at.
#
# Environment:
#   DOWNLOAD=1      fetch missing archives into RAW_DIR first, 1.8 GB: resumed where it stopped,
#                   checked against sha256.txt and md5sum.txt beside this script
#   MIRROR          where from (default: https://www.statmt.org and https://data.statmt.org)
#   CORPORA         what to train on (default: all, "europarl-v7 commoncrawl news-commentary-v12
#                   rapid2016"; fairseq's script has the first three)
#   BPE             subword_nmt, on text tokenized by Moses's rules, so that fairseq's BLEU compares
#                   with the paper's; or sentencepiece, on text that is not (default: subword_nmt)
#   VOCABULARY      merges of subword_nmt (default: 40000, which fairseq's script takes and the paper
#                   counts 41k tokens after) or pieces of sentencepiece (default: 41000)
#   SMOKE=1         a rehearsal on the CPU: without arguments, the script makes up tiny archives,
#                   fetches them and prepares them in data/smoke/wmt17_en_de
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# != 0 ] || [ $smoke = 0 ] || set -- "$(smoke_data)"
[ $# -ge 1 ] && [ $# -le 2 ] || { usage >&2 && exit 2; }
raw=${1%/}
out=${2:-$data_root}
out=${out%/}
sums=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
merges=40000 pieces=41000
if [ $smoke != 0 ]; then
    [ -d "$raw/mirror" ] || die "$raw: no made-up archives; without arguments they are made"
    sums=$(cd "$raw/mirror" && pwd)
    DOWNLOAD=1 MIRROR=file://${sums// /%20} merges=200 pieces=100
fi
no_colon "$out"
case ${BPE:-subword_nmt} in
    subword_nmt)
        bpe=subword_nmt model=bpe.codes tokenizer=
        units=merges vocabulary=${VOCABULARY:-$merges}
        ;;
    sentencepiece)
        bpe=sentencepiece model=spm.model tokenizer=--no-tokenizer
        units=pieces vocabulary=${VOCABULARY:-$pieces}
        ;;
    *) die "BPE must be subword_nmt or sentencepiece, not '$BPE'" ;;
esac
case $vocabulary in
    0* | *[!0-9]*) die "VOCABULARY must be a whole number from 1 on, not '$vocabulary'" ;;
esac
corpora=${CORPORA:-europarl-v7 commoncrawl news-commentary-v12 rapid2016}
settings="$corpora; $vocabulary $units of $bpe"

remove_steps() { rm -rf "$out"/{tokenized,pieces} "$out"/{settings,text,pieces,preprocess}.txt; }

if [ -f "$out/prepared.txt" ]; then
    remove_steps
    say "$out is there already:"
    cat "$out/prepared.txt"
    exit 0
fi
if [ -e "$out" ] && { [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; }; then
    die "$out exists and this script did not make it; move it away or name another folder"
fi
part=$out.part
if [ -f "$part/settings.txt" ] && [ "$(cat "$part/settings.txt")" != "$settings" ]; then
    die "$part was begun with other settings ($(cat "$part/settings.txt")); remove it"
fi

unpack() { # unpack ARCHIVE FILE...: puts these files of an archive where they are in it, in RAW_DIR
    local folder=$raw/$1.part file
    extract "$raw/$1"
    for file in "${@:2}"; do
        [ -f "$folder/$file" ] || die "$1 has no $file"
        mkdir -p "$(dirname "$raw/$file")"
        mv "$folder/$file" "$raw/$file"
    done
    rm -r "$folder"
}

provide() { # provide URL ARCHIVE FILE...: sees to it that these files of an archive are in RAW_DIR
    local url=$1 name=$2 file missing=
    shift 2
    for file in "$@"; do
        [ -f "$raw/$file" ] || missing=$file
    done
    [ -n "$missing" ] || return 0
    local list=$sums/sha256.txt algorithm=SHA256
    grep -q " $name$" "$list" || list=$sums/md5sum.txt algorithm=MD5
    if [ "${DOWNLOAD:-0}" != 0 ]; then
        fetch "$url" "$raw/$name" "$list" "$algorithm"
    else
        [ -f "$raw/$name" ] || die "$raw: no $missing, nor $name; DOWNLOAD=1 fetches it"
        has_sum "$raw/$name" "$list" "$algorithm" ||
            die "$raw/$name: not what was published (its $algorithm is wrong)"
    fi
    unpack "$name" "$@"
}

[ "${DOWNLOAD:-0}" = 0 ] || mkdir -p "$raw"
[ -d "$raw" ] || die "$raw: no such folder; DOWNLOAD=1 makes it"
www=${MIRROR:-https://www.statmt.org} archives=${MIRROR:-https://data.statmt.org}
texts=() names=()
for corpus in $corpora; do
    case $corpus in
        europarl-v7)
            url=$www/wmt13/training-parallel-europarl-v7.tgz stem=training/europarl-v7.de-en
            ;;
        commoncrawl)
            url=$www/wmt13/training-parallel-commoncrawl.tgz stem=commoncrawl.de-en
            ;;
        news-commentary-v12)
            url=$archives/wmt17/translation-task/training-parallel-nc-v12.tgz
            stem=training/news-commentary-v12.de-en
            ;;
        rapid2016)
            url=$archives/wmt17/translation-task/rapid2016.tgz stem=rapid2016.de-en
            ;;
        *) die "CORPORA: no corpus $corpus" ;;
    esac
    provide "$url" "$(basename "$url")" "$stem.en" "$stem.de"
    texts+=(--corpus "$raw/$stem" "$corpus")
    names+=("$corpus")
done
for set in "2016 valid" "2017 test"; do
    year=${set% *}
    files=("test/newstest$year-ende-src.en.sgm" "test/newstest$year-ende-ref.de.sgm")
    provide "$archives/wmt${year#20}/translation-task/test.tgz" "wmt${year#20}-test.tgz" "${files[@]}"
    texts+=(--set "$raw/${files[0]}" "$raw/${files[1]}" "${set#* }")
done

mkdir -p "$part/pieces"
echo "$settings" >"$part/settings.txt"
# tqdm, in subword-nmt, reads this: now and then is enough for a log.
[ -t 2 ] || export TQDM_MININTERVAL=60

say "cleaning the text in $raw"
python3 "$root/scripts/moses_text.py" --languages en de \
    ${tokenizer:+"$tokenizer"} "${texts[@]}" "$part" |
    tee "$part/text.txt"

stems=("${names[@]/#/$part/tokenized/}")
if [ ! -f "$part/$model" ]; then
    say "learning joint BPE, $vocabulary $units"
    python3 "$root/scripts/subwords.py" train --bpe "$bpe" --vocabulary "$vocabulary" \
        --model "$part/$model.part" "${stems[@]/%/.en}" "${stems[@]/%/.de}"
    mv "$part/$model.part" "$part/$model"
fi

say "splitting into pieces"
pairs=(python3 "$root/scripts/subwords.py" pairs --bpe "$bpe" --model "$part/$model" --languages en de)
"${pairs[@]}" --out "$part/pieces/train" "${stems[@]}" | tee "$part/pieces.txt"
for split in valid test; do
    "${pairs[@]}" --keep-all --out "$part/pieces/$split" "$part/tokenized/$split" >/dev/null
done

if [ ! -d "$part/bin" ]; then
    say "binarizing"
    rm -rf "$part/bin.part"
    fairseq-preprocess --source-lang en --target-lang de --joined-dictionary \
        --trainpref "$part/pieces/train" --validpref "$part/pieces/valid" \
        --testpref "$part/pieces/test" --destdir "$part/bin.part" \
        --workers "$(python3 -c 'import os; print(os.cpu_count())')" \
        >"$part/preprocess.txt" 2>&1 || { tail -n 20 "$part/preprocess.txt" >&2 && exit 1; }
    mv "$part/bin.part" "$part/bin"
fi
what="$settings; a dictionary of $(wc -l <"$part/bin/dict.en.txt")"
say "$what"
{ echo "$what" && cat "$part/text.txt" "$part/pieces.txt"; } >"$part/prepared.txt.part"
mv "$part/prepared.txt.part" "$part/prepared.txt"
[ ! -d "$out" ] || rmdir "$out"
mv "$part" "$out"
remove_steps
say "done: $out"
