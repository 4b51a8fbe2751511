#!/usr/bin/env bash
# Prepare the repository. Nothing is compiled: this makes .venv and installs into it.
set -euo pipefail
exec make setup
