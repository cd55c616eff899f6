#!/usr/bin/env bash
# Where does pruning pay? Lambda, r and p chosen on the dev sets, for each method by as many trials,
# and the choices scored on the test sets: for the fine-tunes of Table 1 and for poor ones, made of a
# quarter of the clips, every third word of their transcripts wrong, twice as many steps, and the last
# weights in place of the best. `tuned.sh FOLDER ...` takes what the other scripts take.
. "$(dirname "$0")/common.sh"
[ -n "$demo" ] && whole=0.084 || whole=5 # hours of a training set
[ -n "$demo" ] && last=(--finalists 1 --beam 1) || last=()

# Every third word of a manifest's transcripts is taken from another of its rows.
spoil() { # FROM TO
    python3 - "$1" "$2" <<'END'
import json, os, random, sys

source, target = sys.argv[1:]
folder = os.path.dirname(os.path.realpath(source))
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
words = [word for row in rows for word in row["text"].split()]
draw = random.Random(source)
with open(target, "w", encoding="utf-8") as file:
    for row in rows:
        said = row["text"].split()
        row["text"] = " ".join(draw.choice(words) if draw.random() < 1 / 3 else word for word in said)
        row["audio_filepath"] = os.path.join(folder, row["audio_filepath"])
        print(json.dumps(row, ensure_ascii=False), file=file)
END
}

evaluate_base
finetune_each asr
mkdir -p poor "$own/tuned"
share=2 # of the steps
for language in "${languages[@]}"; do
    [ -e "poor/${language}_asr.jsonl" ] || spoil "data/${language}_asr.train.jsonl" "poor/${language}_asr.jsonl"
    name=${language}_asr_poor
    mapfile -t options < <(training "${language}_asr")
    [ -e "$own/ft/$name" ] || run lorsmerge finetune base --data "poor/${language}_asr.jsonl" "${options[@]}" \
        --hours "$(python3 -c "print($whole / 4)")" --average-last 1 --seed "$seed" --resume \
        --delta "$own/delta/$name.delta" -o "$own/ft/$name"
    evaluate "$own/results/finetuned_poor_$language.json" "${language}_asr" -- "finetuned:$own=$own/ft/$name"
done

sets=()
for language in "${languages[@]}"; do sets+=(--data "data/${language}_asr.dev.jsonl"); done
for suffix in '' _poor; do
    models=() deltas=()
    for language in "${languages[@]}"; do deltas+=("$own/delta/${language}_asr$suffix.delta"); done
    for kind in ta mp svp lors; do
        name=${kind}_tuned$suffix
        space=(--scale 0.1:0.5:0.05)
        case $kind in mp | lors) space+=(--mp 0.05,0.1,0.2,0.4,0.6) ;; esac
        case $kind in svp | lors) space+=(--svp 0.01,0.02,0.05,0.1,0.2) ;; esac
        [ $kind = ta ] && space+=(--sampler grid) || space+=(--trials 15)
        [ -e "$own/tuned/$name.toml" ] || run lorsmerge search base "${deltas[@]}" "${sets[@]}" \
            "${space[@]}" "${last[@]}" --quiet --csv "$own/tuned/$name.csv" -o "$own/tuned/$name.toml"
        [ -e "$own/merged/$name" ] || run lorsmerge merge --recipe "$own/tuned/$name.toml" -o "$own/merged/$name" --quiet
        models+=("${kind}_tuned:$own=$own/merged/$name")
    done
    evaluate "$own/results/tuned$suffix.json" "${languages[@]/%/_asr}" -- "${models[@]}"
done
report --against ta_tuned -- seed*/results/finetuned_??_asr.json seed*/results/tuned.json
script=tuned_poor
report --against ta_tuned -- seed*/results/finetuned_poor_??.json seed*/results/tuned_poor.json
