#!/usr/bin/env bash
# Headline: sixteen methods on Fashion-MNIST; fedpress is at 75 % after 8.77 MB, 5.4 minutes on 3G, 4.3 hours on LoRa.
# Page: docs/results/benchmarks.md. Means by partition: methods-fashion-mnist.csv; of single seeds only those of two labels a
# client were recorded: methods-fashion-mnist-seeds.csv.
set -eu

fedpress bench communication fashion-mnist
