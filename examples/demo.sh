#!/usr/bin/env bash
# The pipeline from fine-tunes to one model, on files of Whisper small's architecture and size.
# The weights are random, because none are downloaded: what is real here is the work.
#
#     examples/demo.sh [FOLDER] [SIZE]        SIZE: nano, tiny, base, small (9 GB) or medium
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-demo}
size=${2:-small}

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

if [ -e "$folder" ] && [ ! -e "$folder/made-by-demo" ]; then
    echo "$folder exists and is not the demo's: name another folder." >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$folder"
touch "$folder/made-by-demo"
echo "Making a Whisper of size $size and three fine-tunes of it in $folder/ ..."
HF_HUB_DISABLE_PROGRESS_BARS=1 python "$here/make_models.py" "$folder" --size "$size" \
    --finetunes ft-ca-asr ft-de-asr ft-de-st
cd "$folder"

run lorsmerge delta base/ ft-ca-asr/ -o ca_asr.delta --task asr --language ca
run lorsmerge delta base/ ft-de-asr/ -o de_asr.delta --task asr --language de
run lorsmerge delta base/ ft-de-st/ -o de_st.delta --task st --language de
run lorsmerge prune ca_asr.delta -o ca_asr.lors.delta --svp 0.03 --mp 0.4
run lorsmerge merge base/ ca_asr.delta de_asr.delta de_st.delta --svp 0.03 --mp 0.4 -o merged/
run python "$here/transcribe.py" merged/
echo
echo "$folder/merged/ is one model of three fine-tunes. Next: lorsmerge inspect $folder/*.delta"
