#!/usr/bin/env bash
# Headline: digits, -0.03 +- 0.51 points against dense FedAvg with 314.5x fewer bytes up and 222.9x in both directions.
# Page: docs/results/benchmarks.md. Seeds: only means were recorded, see the page.
set -eu

fedpress bench paired digits --seeds 11-16 --baseline server.momentum=0.5
