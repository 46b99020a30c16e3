#!/usr/bin/env bash
# Fills a quarter of an hour on one GPU: a whole sweep with its verdict, how fast it trains, the tests.
#
#   tests/release/gpu_minutes.sh BOOKS OUT            BOOKS: a folder of text, 100 MB or more
#   tests/release/gpu_minutes.sh BOOKS OUT 0.0003     a rehearsal on a CPU, at a scale of the compute
#
# Small files land in OUT: the sweep's records, bench-*.json, tests.log. The most wanted comes first,
# and each part has a limit of its own, so that a fault in one leaves time for the others; a sweep
# that is cut off goes on when the same command is given again. On an H100 a program of 12 unrolled
# layers takes 45 s to compile, with its evaluation (2026-11-28).
set -uo pipefail
books=$1 out=$2 scale=${3:-1}
mkdir -p "$out"
cd "$(dirname "$0")/../.."
say() { echo "== $* ($SECONDS s)"; }

fast="--dtypes=bfloat16 --rounds=5 --config.model.scan=False --config.model.activations=bfloat16"
fast="$fast --config.data.isolate_documents=False --config.data.tokenizer=bpe:32000"
sizes="768/12/12" batch="--config.data.seq_len=1024 --config.data.batch_size=32"
if [ "$scale" != 1 ]; then
  sizes="64/2/2" batch="--config.data.seq_len=128 --config.data.batch_size=4"
fi

say sweep
timeout --signal=TERM 480 python3 -m scaling.main sweep --config=configs/sweeps/gpu_minutes.py:$scale \
  --config.data.source=text:$books --workdir="$out/sweep" 2>&1 | tee "$out/sweep.log" | tail -n 60

bench() {
  say "bench $1"
  timeout 200 python3 -m scaling.main bench --workdir="$out/bench-$1" $fast "${@:2}" 2>&1 | tail -n 12
  cp "$out/bench-$1/bench.json" "$out/bench-$1.json"
}
bench 124m --sizes=$sizes $batch
bench families --sizes=$sizes --families=encoder,encoder_decoder $batch
[ "$scale" = 1 ] && bench 1b --sizes=2048/18/16 --config.data.seq_len=2048 --config.data.batch_size=8
bench vary --sizes=$sizes $batch --vary=model.flash=False --vary=data.isolate_documents=True

say tests
timeout 300 python3 -m pytest tests/gpu -v > "$out/tests.log" 2>&1
tail -n 20 "$out/tests.log"
say done
