#!/usr/bin/env bash
# Headline: 100 times SIGKILL, and every run ended with the model, ledger and figures of the undisturbed one. No seeds: pass or fail.
# Page: docs/concepts/nothing-lost.md.
set -eu

FEDPRESS_KILLS=100 python -m pytest -s tests/simulations/runs/test_kill.py
