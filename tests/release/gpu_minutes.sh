#!/usr/bin/env bash
# Fills a quarter of an hour on one GPU: does it train, how fast, and a whole sweep with its verdict.
#
#   tests/release/gpu_minutes.sh BOOKS OUT            BOOKS: a folder of text, 100 MB or more
#   tests/release/gpu_minutes.sh BOOKS OUT 0.0003     a rehearsal on a CPU, at a scale of the compute
#
# Small files land in OUT: bench-*.json, packs.json, and the sweep's records. Each part has a limit
# of its own, so that a fault in one leaves time for the others; a sweep that is cut off goes on when
# the same command is given again.
set -uo pipefail
books=$1 out=$2 scale=${3:-1}
mkdir -p "$out"
cd "$(dirname "$0")/../.."
say() { echo "== $* ($SECONDS s)"; }

dtype="--config.model.dtype=bfloat16" small=""
fast="--config.model.scan=False --config.model.activations=bfloat16"
sizes="768/12/12" batch="--config.data.seq_len=1024 --config.data.batch_size=32"
if [ "$scale" != 1 ]; then
  small="--config.train.tokens=60000 --config.optim.warmup_tokens=10000" sizes="64/2/2" batch="--config.data.seq_len=128 --config.data.batch_size=4"
fi

sweep="--config=configs/sweeps/gpu_minutes.py:$scale --config.data.source=text:$books"
say prepare the books
timeout 240 python3 -m scaling.main plan $sweep 2>&1 | tail -n 3

for objective in clm mlm span; do
  say "train $objective"
  timeout 60 python3 -m scaling.main train --config=configs/$objective.py --workdir="$out/one-$objective" \
    --config.train.tokens=200000 $dtype $small 2>&1 | tail -n 3
done

bench() {
  say "bench $1"
  timeout 100 python3 -m scaling.main bench --workdir="$out/bench-$1" --dtypes=bfloat16 --rounds=5 \
    --config.data.tokenizer=bpe:4096 "${@:2}" 2>&1 | tail -n 12
  cp "$out/bench-$1/bench.json" "$out/bench-$1.json"
}
bench 124m --sizes=$sizes $batch $fast
bench families --sizes=$sizes --families=encoder,encoder_decoder $batch $fast
[ "$scale" = 1 ] && bench 1b --sizes=2048/18/16 --config.data.seq_len=2048 --config.data.batch_size=8 $fast
bench vary --sizes=$sizes $batch $fast --vary=model.scan=True --vary=model.activations=float32 \
  --vary=model.flash=False --vary=data.isolate_documents=False

say packs
timeout 100 python3 tests/release/growth.py "$out/packs.json" pack model.ladder=standard model.size=3 \
  ${dtype//--config./} 2>&1 | tail -n 8

say sweep
timeout --signal=TERM 480 python3 -m scaling.main sweep $sweep --workdir="$out/sweep" 2>&1 | tee "$out/sweep.log" | tail -n 60
say done
