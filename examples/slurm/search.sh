#!/usr/bin/env bash
# One search on many machines: every task of the array takes trials from the same study.
#   sbatch --array=0-7 --gres=gpu:1 --time=04:00:00 examples/slurm/search.sh
# Task 0 begins the search and writes the result, the others help. The trial of a task that was
# killed is done again; submitting the same again resumes.
#
# STUDY is a file on a disk that all machines share, NFS too, or a database that all of them reach:
# postgresql+psycopg://user@host/searches, say.
#SBATCH --job-name=lorsmerge-search
#SBATCH --output=search-%A_%a.log
set -euo pipefail

STUDY=${STUDY:-merge.journal}
SEARCH=(
    lorsmerge search openai-whisper-small/
    ca_asr.delta de_asr.delta es_asr.delta fr_asr.delta it_asr.delta
    --data dev.jsonl --svp 0.01,0.02,0.03,0.05 --mp 0.1,0.2,0.4,0.6 --scale 0.05:0.5
    --trials "${TRIALS:-200}" --study "$STUDY"
)
if [ "${SLURM_ARRAY_TASK_ID:-0}" -eq 0 ]; then
    exec "${SEARCH[@]}" -o best.toml --csv trials.csv --plot trials.png --force
else
    exec "${SEARCH[@]}" --worker
fi
