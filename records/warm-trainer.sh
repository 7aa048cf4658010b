#!/usr/bin/env bash
# Headline: a warm client spends 0.31 s of processor time on a round of digits, where a process a message spends 3.54. No seeds: times.
# Page: docs/results/benchmarks.md.
set -eu

fedpress bench warm --rounds 6
