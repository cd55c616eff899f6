# What the scripts of this folder share: where data, base and settings come from, and the steps.
# Each step is a `lorsmerge` command, shown before it is run, and is skipped where its output is
# there: a script that was stopped goes on, and scripts that are given one folder share their work.
set -euo pipefail
paper=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
examples=$(dirname "$paper")
script=$(basename "$0" .sh)
command -v lorsmerge > /dev/null || PATH=$(dirname "$examples")/.venv/bin:$PATH
languages=(ca de es fr it)

usage() {
    cat >&2 <<END
usage: examples/paper/$script.sh FOLDER [--demo] [--seed N] [--bundle DIR]

    FOLDER        where everything is kept; the scripts share their fine-tunes there
    --demo        the small Whisper and noisy speech of examples/demo/bundle
    --seed N      of the training (0); the report averages over all seeds in FOLDER
    --bundle DIR  another bundle than the repository's, with more test clips (--demo)
    --ten         the deltas of both tasks in place of five of recognition (methods.sh)

Without --demo: openai-whisper-small in \$WHISPER and Common Voice with CoVoST 2 in \$COMMON_VOICE/ca ...
END
    exit 2
}

folder= demo= ten= seed=0 bundle=$examples/demo/bundle
while [ $# -gt 0 ]; do
    case $1 in
        --demo) demo=yes ;;
        --ten) ten=ten_ ;;
        --seed) seed=${2:?} && shift ;;
        --bundle) bundle=$(realpath "${2:?}") && demo=yes && shift ;;
        -*) usage ;;
        *) [ -z "$folder" ] || usage; folder=$1 ;;
    esac
    shift
done
[ -n "$folder" ] || usage

say() { printf '\n%s\n' "$*"; }
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
if [ -z "$demo" ]; then
    WHISPER=$(absolute "${WHISPER:?is to be the folder of openai/whisper-small, or give --demo}")
    COMMON_VOICE=$(absolute "${COMMON_VOICE:?is to be the folder that holds ca/ de/ es/ fr/ it/}")
fi
mkdir -p "$folder"
cd "$folder"
kind=${demo:+demo $bundle}
kind=${kind:-whisper}
[ -e made-of ] || { echo "$kind" > made-of.$$ && mv made-of.$$ made-of; } # whole: other seeds read it
if [ "$(cat made-of)" != "$kind" ]; then
    echo "$folder was made of other data ($(cat made-of)): name another folder." >&2
    exit 1
fi
own=seed$seed  # what depends on the seed
mkdir -p results "$own"/{ft,delta,merged,results}

# --- data, base and settings ----------------------------------------------------------------------

if [ -n "$demo" ]; then
    ln -sfn "$bundle" data
    ln -sfn "$bundle/base" base
    beam=1
    whole=0.084 # hours of a training set
    about=(--title "The paper's experiments in miniature")
else
    ln -sfn "$WHISPER" base
    mkdir -p data
    for language in "${languages[@]}"; do
        for task in asr st; do
            for split in train:5 dev:1 test:1; do # hours
                file=data/${language}_$task.${split%:*}.jsonl
                [ -e "$file" ] || run lorsmerge data "$COMMON_VOICE/$language" \
                    --language "$language" --task "$task" --split "${split%:*}" --hours "${split#*:}" -o "$file"
            done
        done
    done
    beam=20
    whole=5
    about=(--title "The paper's experiments")
fi

# Steps or epochs, rate and batches of a fine-tune on sets such as `ca_asr de_asr`: as many epochs
# for joint training as for one set alone. $share is that of the training data that is used.
share=1
training() {
    local count=$#
    if [ -n "$demo" ]; then
        local steps
        steps=$(sed -n 's/^steps = //p' "$examples/demo/finetune.toml")
        printf '%s\n' --recipe "$examples/demo/finetune.toml" \
            --steps "$(python3 -c "print(max(1, round($steps * $count * $share)))")"
    elif [ $count = 1 ]; then
        printf '%s\n' --recipe "$examples/recipes/finetune/$1.toml"
    else
        local rate=1e-6 # the paper has none for both tasks
        case "$*" in
            *_st*) case "$*" in *_asr*) ;; *) rate=5e-9 ;; esac ;; # its Table 6
            *) rate=1e-5 ;;                                       # its Table 5
        esac
        printf '%s\n' --learning-rate $rate --schedule constant --epochs 10 --batch-size 8 --effective-batch 32
    fi
}

# Ratios of a delta's pruning, as `svp=0.05,mp=0.2`, of what is wanted of the two.
ratios() { # KIND (lors, svp, mp) DELTA
    local svp mp
    if [ -n "$demo" ]; then
        svp=0.05 mp=0.2
    else
        case $2 in # the paper's Tables 5 and 6; it has none for joint training
            ca_asr*) svp=0.05 mp=0.4 ;; ca_st*) svp=0.05 mp=0.6 ;;
            de_asr*) svp=0.03 mp=0.6 ;; de_st*) svp=0.03 mp=0.4 ;;
            es_asr*) svp=0.02 mp=0.4 ;; es_st*) svp=0.05 mp=0.2 ;;
            fr_asr*) svp=0.01 mp=0.1 ;; fr_st*) svp=0.02 mp=0.2 ;;
            it_asr*) svp=0.01 mp=0.1 ;; it_st*) svp=0.01 mp=0.2 ;;
            *) svp=0.03 mp=0.4 ;;
        esac
    fi
    case $1 in
        svp) echo "svp=$svp" ;;
        mp) echo "mp=$mp" ;;
        lors) echo "svp=$svp,mp=$mp" ;;
    esac
}

# Lambda for a number of deltas. Eq. 8 is a sum: fewer deltas bear a larger one.
scale_of() {
    if [ -z "$demo" ]; then
        echo 0.15
    else
        case $1 in 1) echo 0.7 ;; 2) echo 0.4 ;; 3) echo 0.3 ;; 4) echo 0.25 ;; 5) echo 0.2 ;; *) echo 0.1 ;; esac
    fi
}

# --- steps ----------------------------------------------------------------------------------------

# A fine-tune on one or several sets, and its delta: finetune NAME SET... [-- OPTION...]
finetune() {
    local name=$1 sets=() files=() options=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        sets+=("$1")
        files+=(--data "data/$1.train.jsonl" --dev "data/$1.dev.jsonl")
        shift
    done
    [ $# = 0 ] || shift
    mapfile -t options < <(training "${sets[@]}")
    [ -e "$own/ft/$name" ] || run lorsmerge finetune base "${files[@]}" "${options[@]}" "$@" \
        --seed "$seed" --resume --delta "$own/delta/$name.delta" -o "$own/ft/$name"
    [ -e "$own/delta/$name.delta" ] || run lorsmerge delta base "$own/ft/$name" -o "$own/delta/$name.delta" --quiet
}

# A merge: merge NAME KIND DELTA..., where KIND is wa, ta, mp, svp or lors. For the last three, with
# `control`, also ta_as_NAME: task arithmetic with the step of the same norm. $scale holds for all.
scale=
merge() {
    local name=$1 kind=$2 delta deltas=() options=()
    shift 2
    [ ! -e "$own/merged/$name" ] || [ ! -e "$own/merged/$name.json" ] || return 0
    for delta in "$@"; do
        case $kind in
            wa | ta) deltas+=("$own/delta/$delta.delta") ;;
            *) deltas+=("$own/delta/$delta.delta:$(ratios $kind "$delta")") ;;
        esac
    done
    if [ "$kind" = wa ]; then
        options=(--method wa)
    else
        options=(--scale "${scale:-$(scale_of $#)}")
    fi
    merge_as "$name" "${deltas[@]}" "${options[@]}"
}

# The command itself; what it reports is kept beside the model, for its step norm.
merge_as() {
    local name=$1 base=(base)
    shift
    [ "$1" != --recipe ] || base=() # it names its own
    [ ! -e "$own/merged/$name" ] || [ ! -e "$own/merged/$name.json" ] || return 0
    mkdir -p "$(dirname "$own/merged/$name")"
    printf '\n$ lorsmerge merge %s -o %s\n' "${base[*]} $*" "$own/merged/$name"
    lorsmerge merge "${base[@]}" "$@" -o "$own/merged/$name" --force --json > "$own/merged/$name.json.part"
    mv "$own/merged/$name.json.part" "$own/merged/$name.json"
}

step_norm() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["step_norm"])' "$own/merged/$1.json"; }

# Task arithmetic of the same deltas with the step of the same norm: control NAME DELTA...
control() {
    local name=$1
    shift
    merge_as "ta_as_$name" "${@/#/$own/delta/}" --step-norm-of "$own/merged/$name"
}

# All of the paper's merges of some deltas, under names that end alike: merges SUFFIX DELTA...
merges() {
    local suffix=$1 kind
    shift
    for kind in wa ta mp svp lors; do
        merge "$kind$suffix" $kind "$@"
    done
    for kind in mp svp lors; do
        control "$kind$suffix" "${@/%/.delta}"
    done
}
all_kinds=(wa ta mp ta_as_mp svp ta_as_svp lors ta_as_lors)

# Scores: evaluate RESULTS SET... -- MODEL..., where a MODEL is NAME=PATH. $tests is where a SET lies.
tests=data/SET.test.jsonl
evaluate() {
    local results=$1 sets=()
    shift
    while [ "$1" != -- ]; do
        sets+=(--data "${1%%_*}=${tests/SET/$1}")
        shift
    done
    shift
    [ ! -e "$results" ] || return 0
    run lorsmerge eval "$@" "${sets[@]}" --beam $beam --hypotheses "${results%.json}.said.jsonl" --quiet -o "$results"
    rm -f "${results%.json}.said.jsonl" # the results hold every hypothesis
}

# The base on all sets; each language's and task's own fine-tune on its own.
evaluate_base() {
    local language sets=()
    for language in "${languages[@]}"; do sets+=("${language}_asr" "${language}_st"); done
    evaluate results/pretrained.json "${sets[@]}" -- pretrained=base
}
finetune_each() { # TASK...
    local task language
    for task in "$@"; do
        for language in "${languages[@]}"; do
            finetune "${language}_$task" "${language}_$task"
            evaluate "$own/results/finetuned_${language}_$task.json" "${language}_$task" -- \
                "finetuned:$own=$own/ft/${language}_$task"
        done
    done
}

# Tables and figures over all seeds that this script has been run with: report OPTION... -- RESULTS...
report() {
    local options=() files=() file
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    for file in "$@"; do # other scripts may have made fine-tunes of more seeds, and not their merges
        if compgen -G "${file%%/*}/results/$script*.json" > /dev/null; then files+=("$file"); fi
    done
    run lorsmerge report results/pretrained.json "${files[@]}" "${options[@]}" "${about[@]}" \
        --paper "$paper/paper.toml" -o "$script" --force
    printf '\n%s, %d minutes %d seconds\n' "$PWD/$script/report.html" $((SECONDS / 60)) $((SECONDS % 60))
}
