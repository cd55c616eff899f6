#!/usr/bin/env bash
# Every method of Table 1 at its best on the dev sets. `tuned.sh` says what it takes.
overfit=
. "$(dirname "$0")/chosen.sh"
