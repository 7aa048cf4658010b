#!/usr/bin/env bash
# Headline: where sparse training loses: two labels a client -2.98 +- 4.03 points, text -1.70 +- 0.37.
# Page: docs/results/learning.md. Seeds: hard-cases.csv.
set -eu

fedpress bench paired fashion-mnist-100 --seeds 1-3 --set rounds=200 --set training.precision=bfloat16 \
    --set partition.kind=labels --baseline server.learning_rate=2.0 --baseline server.ema_decay=0.9
fedpress bench paired text-books --seeds 1-3 --baseline server.ema_decay=0.9 --baseline training.learning_rate=4.0
