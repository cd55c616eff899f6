#!/usr/bin/env bash
# The paper's Table 1 in miniature, from the audio: fine-tune five languages, merge, score.
# Every line that it runs is shown, and is what you would type for models of your own.
#
#     examples/demo/demo.sh [FOLDER]           6 minutes on two cores
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-demo}
languages=(ca de es fr it)
scale=0.2  # the best of 0.15, 0.2, 0.25, 0.3 and 0.4 on the dev sets

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

trap 'cat errors.txt >&2 2> /dev/null' ERR

norm() { # of the step that a merge takes from the base
    lorsmerge delta base "$1" -o "$1.delta" --json 2> errors.txt | python -c 'import json, sys; print(json.load(sys.stdin)["norm"])'
}

if [ -e "$folder" ] && [ ! -e "$folder/made-by-demo" ]; then
    echo "$folder exists and is not the demo's: name another folder." >&2
    exit 1
fi
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"
touch made-by-demo
ln -s "$here/bundle" data
ln -s "$here/bundle/base" base
mkdir ft merged
lists=()
for language in "${languages[@]}"; do
    lists+=(--data "$language=data/${language}_asr.test.jsonl")
done

echo "A small Whisper that knows five languages meets audio it finds hard: noise, echo, telephones."
run lorsmerge data data/*_asr.train.jsonl

echo
echo "1. Fine-tune it on 200 clips of each language (every 7th word of the transcripts is wrong)."
for language in "${languages[@]}"; do
    run lorsmerge finetune base --data "data/${language}_asr.train.jsonl" \
        --dev "data/${language}_asr.dev.jsonl" --recipe "$here/finetune.toml" \
        --delta "${language}_asr.delta" -o "ft/${language}_asr"
done

echo
echo "2. Look at what pruning keeps of a delta. (--delta above has done `lorsmerge delta base ft/ca_asr -o ca_asr.delta`)"
run lorsmerge prune ca_asr.delta -o ca_asr.lors.delta --svp 0.05 --mp 0.2

echo
echo "3. Merge the five by each method."
run lorsmerge merge base *_asr.delta --method wa -o merged/wa
run lorsmerge merge base *_asr.delta --scale $scale -o merged/ta
run lorsmerge merge base *_asr.delta --scale $scale --mp 0.2 -o merged/mp
run lorsmerge merge base *_asr.delta --scale $scale --svp 0.05 -o merged/svp
run lorsmerge merge base *_asr.delta --scale $scale --svp 0.05 --mp 0.2 -o merged/lors

echo
echo "Pruning also shrinks. Beside each pruned merge, task arithmetic (ta) of the same norm:"
whole=$(norm merged/ta)
for method in mp svp lors; do
    same=$(python -c "print(f'{$scale * $(norm merged/$method) / $whole:.4f}')")
    run lorsmerge merge base *_asr.delta --scale "$same" -o "merged/ta_as_$method"
done

echo
echo "4. Score them on 200 clips a language: word error rate, with a bootstrap's standard error."
echo "Greedy search, for time; the paper's is --beam 20."
run lorsmerge eval pretrained=base "${lists[@]}" --beam 1 --hypotheses said.jsonl --quiet
for language in "${languages[@]}"; do
    run lorsmerge eval "finetuned=ft/${language}_asr" --data "$language=data/${language}_asr.test.jsonl" \
        --beam 1 --hypotheses said.jsonl --quiet
done
run lorsmerge eval merged/wa merged/ta merged/{mp,ta_as_mp,svp,ta_as_svp,lors,ta_as_lors} \
    "${lists[@]}" --beam 1 --hypotheses said.jsonl --quiet
run lorsmerge eval --score-only --hypotheses said.jsonl --compare ta lors -o results.json
cat <<'END'

finetuned is each language's own fine-tune: five models. Every row below it is one model; wa and ta are
the same here, five deltas of 0.2 each.
A merged model does about what the five do. Prunings are no better than the task arithmetic of their
norm here, within the errors: examples/demo/README.md says what to make of it.
END
printf '\n%d minutes %d seconds. Hear for yourself, with any clip here or one of your own:\n\n' \
    $((SECONDS / 60)) $((SECONDS % 60))
printf '    source .venv/bin/activate; cd %s\n' "$folder"
printf '    lorsmerge transcribe base ft/ca_asr merged/lors --language ca --audio data/audio/ca/test/ca-test-0015.opus\n'
