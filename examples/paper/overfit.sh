#!/usr/bin/env bash
# As tuned.sh, for fine-tunes that overfitted. `overfit.sh` says what it takes.
overfit=_overfit
. "$(dirname "$0")/chosen.sh"
