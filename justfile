# Recipes for daily work: `just` lists them. They are what .ci/run does, in pieces.

default:
    @just --list

# install for development
install:
    pip install -c constraints.txt -e ".[hf,cpu,test,kernels,dev]"

# the whole story on the shipped model
demo:
    tersor demo

# tests on all cores; `just test tests/codec` for some of them
test *args:
    pytest -q -n auto {{ args }}

# tests that need a GPU
test-gpu:
    pytest -q -m gpu

# lint, format check and types
lint:
    ruff check .
    ruff format --check .
    mypy

# put the format right
format:
    ruff format .
    ruff check --fix .

# compile every kernel for every architecture; fails on spills
kernels:
    python -m tersor.kernels.check

# codec speed against its rivals
bench-codec:
    python bench/codec_speed.py

# everything, as before a change lands
ci:
    bash .ci/run
