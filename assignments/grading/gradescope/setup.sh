#!/usr/bin/env bash
# Run once by Gradescope, to build the image. Choose a base with Python 3.11 or newer, such as Ubuntu 24.04.
set -euo pipefail
apt-get update
apt-get install --yes --no-install-recommends python3 python3-venv
python3 -m venv /autograder/venv
cd /autograder/source
# PyTorch without what only a GPU needs, which is gigabytes: from its own index, or not at all.
/autograder/venv/bin/pip install --quiet --index-url https://download.pytorch.org/whl/cpu torch
/autograder/venv/bin/pip install --quiet --requirement requirements.txt ./robustlab-*.whl
chmod 700 /autograder/source
