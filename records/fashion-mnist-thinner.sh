#!/usr/bin/env bash
# Headline: the same for 1.30 +- 0.09 points, with 1,104x fewer bytes up and 327x in both directions.
# Page: docs/results/learning.md. Seeds: fashion-mnist-thinner.csv.
set -eu

fedpress bench paired fashion-mnist-100 --seeds 1-3 --set rounds=200 --set training.precision=bfloat16 \
    --set density=0.0027 --set downlink.density=0.0028 \
    --baseline server.learning_rate=2.0 --baseline server.ema_decay=0.9
