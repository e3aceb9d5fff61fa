#!/usr/bin/env bash
# Prepares LibriSpeech, or a corpus in its layout, for the task ctc_speech.
#
#   prepare.sh LIBRISPEECH_DIR [OUT_DIR]
#
# LIBRISPEECH_DIR holds the sets as they are published, SET/SPEAKER/CHAPTER/*.flac and *.trans.txt:
# at least one of train-clean-100, train-clean-360, train-other-500, and dev-clean or dev-other.
# OUT_DIR (default: data/librispeech in the project) gets
#   SET.tsv         a manifest of each set: name, audio, frames of 10 ms, transcript, speaker
#   SET.zip         with FEATURES=1, the log-mel features of each set
#   config.yaml     where the audio is, normalization and SpecAugment
#   dict.txt        the letters
#   prepared.txt    the sets; its presence says that all is there
# Every recording is decoded once, on all cores. What CTC cannot be trained on (unreadable, silent,
# without a transcript, too short for it, ...) is left out, counted and named in one line a set. A
# script that was stopped goes on with the first set that is not finished, and so does one that is
# run again when more sets are there.
#
# Environment:
#   DOWNLOAD=1      fetch missing sets into LIBRISPEECH_DIR first: resumed where it stopped, checked
#                   against md5sum.txt beside this script
#   SETS            what to fetch (default: all seven, 60 GB packed)
#   MIRROR          where from (default: https://www.openslr.org/resources/12)
#   FEATURES=1      store features (32 kB a second, 111 GB for 960 h): no decoding while training
#   STRICT=1        an utterance that would be left out is an error
#   SMOKE=1         a rehearsal on the CPU: without arguments, the script makes up a tiny corpus and
#                   prepares it in data/smoke/librispeech
set -euo pipefail
# shellcheck source=scripts/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipe.sh"

[ $# != 0 ] || [ $smoke = 0 ] || set -- "$(smoke_data)"
[ $# -ge 1 ] && [ $# -le 2 ] || { usage >&2 && exit 2; }
corpus=${1%/}
out=${2:-$data_root}
out=${out%/}
no_colon "$corpus"
no_colon "$out"
sums=$(dirname "${BASH_SOURCE[0]}")/md5sum.txt

unpack() { # SET
    local archive=$corpus/$1.tar.gz
    extract "$archive"
    mv "$archive.part/LibriSpeech/$1" "$corpus/$1"
    rm -r "$archive" "$archive.part"
}

if [ "${DOWNLOAD:-0}" != 0 ]; then
    mirror=${MIRROR:-https://www.openslr.org/resources/12}
    mkdir -p "$corpus"
    for set in ${SETS:-$(sed 's/.* //; s/\.tar\.gz$//' "$sums")}; do
        grep -q " $set\.tar\.gz$" "$sums" || die "SETS: no set $set"
        [ ! -d "$corpus/$set" ] || continue
        fetch "$mirror/$set.tar.gz" "$corpus/$set.tar.gz" "$sums" MD5
        unpack "$set"
    done
fi
[ -d "$corpus" ] || die "$corpus: no such folder; DOWNLOAD=1 fetches it"
if [ -d "$out" ] && [ ! -f "$out/config.yaml" ] && [ -n "$(ls -A "$out")" ]; then
    die "$out exists and this script did not make it; move it away or name another folder"
fi

options=()
[ "${FEATURES:-0}" = 0 ] || options+=(--features)
[ "${STRICT:-0}" = 0 ] || options+=(--strict)
python3 "$root/scripts/librispeech_manifests.py" \
    ${options[@]+"${options[@]}"} "$corpus" "$out"
(cd "$out" && printf '%s\n' *.tsv) >"$out/prepared.part"
mv "$out/prepared.part" "$out/prepared.txt"
say "done: $out"
