#!/usr/bin/env bash
# Headline: sixteen methods on digits; fedpress is at 95 % after 1.20 MB, and after 1.8 minutes on 3G.
# Page: docs/results/benchmarks.md. Means of three seeds: methods-digits.csv; single seeds were not recorded.
set -eu

fedpress bench communication digits
