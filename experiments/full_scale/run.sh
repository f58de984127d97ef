#!/usr/bin/env bash
# The evidence of experiments/full_scale, in stages; each is left out where its result is complete, and a run that was
# cut off is continued. From the repository's root, on a machine with one GPU of 80 GB:
#
#   DIR=/data/transformer OUT=/data/out PYTHON=python3 bash experiments/full_scale/run.sh [overrides of both runs]
#
# DIR      the checkpoint (41.4 GB; a folder in memory makes writing and reading independent of the disk)
# OUT      where what is worth keeping goes, one .tar.gz a run (default: the run folders)
# RUNS     the run folders, 2 GB of reference arrays for the length of a run (default results/runs/full_scale)
# STAGES   default "make run512 run1024"
# PRESET   default transformer; PRESET=micro with small overrides tries the script on a CPU in minutes
set -uo pipefail

: "${DIR:?is the folder of the checkpoint, made if it is absent}"
PYTHON=${PYTHON:-python3} RUNS=${RUNS:-results/runs/full_scale} OUT=${OUT:-$RUNS}
STAGES=${STAGES:-make run512 run1024} PRESET=${PRESET:-transformer}
mkdir -p "$RUNS" "$OUT"
failed=0

lab() { "$PYTHON" -m precision_lab "$@"; }

timed() { # timed NAME COMMAND...: runs it, and prints how long it took and how it ended
  local name=$1 start=$SECONDS code=0
  shift
  "$@" || code=$?
  echo "== $name: $((SECONDS - start)) s, exit code $code"
  [ "$code" -le "$failed" ] || failed=$code
}

is_complete() { grep -qs '"status": "complete"' "$1/manifest.json" && [ -f "$1/report.html" ]; }

run() { # run NAME OVERRIDES...: the experiment into $RUNS/NAME, continued if it was cut off
  local out=$RUNS/$1
  shift
  if grep -qs '"status": "complete"' "$out/manifest.json"; then
    lab report run="$out"
    return
  fi
  [ -f "$out/manifest.json" ] && set -- "$@" resume=true
  lab run +exp=full_scale model=transformer_synthetic model.path="$DIR" "$@" out="$out"
}

keep() { # keep NAME: what a repository can hold; tables only where they are small
  local from=$RUNS/$1 to=$RUNS/kept/full_scale_$1
  mkdir -p "$to/figures"
  cp "$from"/{summary.json,manifest.json,config.yaml,report.html} "$to" && cp "$from"/figures/*.png "$to/figures"
  find "$from" -maxdepth 1 -name '*.parquet' -size -2M -exec cp {} "$to" \;
  tar -czf "$OUT/full_scale_$1.tar.gz" -C "$RUNS/kept" "full_scale_$1"
}

for stage in $STAGES; do
  case $stage in
    make)
      [ -f "$DIR/model_index.json" ] || timed make lab models make="$PRESET" to="$DIR"
      [ -f "$DIR/model_index.json" ] || exit "$failed"
      ;;
    run512)
      is_complete "$RUNS/512" || timed run512 run 512 "$@"
      is_complete "$RUNS/512" && keep 512
      ;;
    run1024)
      # drift at two blocks: an array of the image stream is 50 MB in fp32, and is compared on the CPU
      is_complete "$RUNS/1024" || timed run1024 run 1024 image.height=1024 image.width=1024 \
        'drift.sites=["transformer_blocks.{29,59}","proj_out","pipeline:{guidance,euler_step,to_pixels}"]' \
        latency.min_rounds=6 "$@"
      is_complete "$RUNS/1024" && keep 1024
      ;;
    *)
      echo "STAGES names $stage, expected make, run512 or run1024" >&2
      exit 2
      ;;
  esac
done
exit "$failed"
