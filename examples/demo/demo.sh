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

merge() { # and note how long a step it takes from the base
    run lorsmerge merge base *_asr.delta "$@" | tee merge.txt
    step=$(sed -n 's/^a step of norm \(.*\) from the base$/\1/p' merge.txt)
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
mkdir ft merged results
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
echo "2. Look at what pruning keeps of a delta (--delta above: the same as lorsmerge delta base ft/ca_asr)."
run lorsmerge prune ca_asr.delta -o ca_asr.lors.delta --svp 0.05 --mp 0.2

echo
echo "3. Merge the five by each method. Pruning also shrinks: beside each pruned merge, task arithmetic"
echo "   (ta) that takes a step of the same length."
merge --method wa -o merged/wa
merge --scale $scale -o merged/ta
whole=$step
for method in mp svp lors; do
    case $method in
        mp) ratios=(--mp 0.2) ;;
        svp) ratios=(--svp 0.05) ;;
        lors) ratios=(--svp 0.05 --mp 0.2) ;;
    esac
    merge --scale $scale "${ratios[@]}" -o merged/$method
    merge --scale "$(python -c "print(f'{$scale * $step / $whole:.4f}')")" -o "merged/ta_as_$method"
done

echo
echo "4. Score them on 200 clips a language: word error rate, with a standard error over voices."
echo "Greedy search, for time; the paper's is --beam 20."
run lorsmerge eval pretrained=base "${lists[@]}" --beam 1 --quiet -o results/pretrained.json
for language in "${languages[@]}"; do
    run lorsmerge eval "finetuned=ft/${language}_asr" --data "$language=data/${language}_asr.test.jsonl" \
        --beam 1 --quiet -o "results/finetuned_$language.json"
done
run lorsmerge eval merged/{wa,ta,mp,ta_as_mp,svp,ta_as_svp,lors,ta_as_lors} "${lists[@]}" \
    --beam 1 --quiet -o results/merged.json

echo
echo "5. Tables: each pruned merge beside its control, the gain that is kept, and what it was made of."
echo "In brackets: the paper's own numbers, of Whisper small on CoVoST 2."
run lorsmerge report results/*.json --paper "$here/../paper/paper.toml" -o report \
    --title "Five languages, one model"
cat <<'END'

Finetuned is each language's own fine-tune: five models. Every row below it is one model; WA and TA are
the same here, five deltas of 0.2 each.
A merged model does about what the five do. Prunings are no better than the task arithmetic of their
norm here, within the errors: examples/demo/README.md says what to make of it.
END
printf '\n%d minutes %d seconds. %s/report/report.html has the tables.\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) "$folder"
printf 'Hear for yourself, with any clip here or one of your own:\n\n'
printf '    source .venv/bin/activate; cd %s\n' "$folder"
printf '    lorsmerge transcribe base ft/ca_asr merged/lors --language ca --audio data/audio/ca/test/ca-test-0015.opus\n'
