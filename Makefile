PYTHON ?= python3
RUN := .venv/bin/python -m
FLWR ?= 1.42

.PHONY: help demo check format test results options docs golden bench bench-decoding bench-start scale setup test-flwr dist tensorboard

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/  /' | awk '{printf "make %-14s", $$1; $$1 = ""; print}'

demo: setup ## run a small federation on scikit-learn's digits
	$(RUN) lit_fedbabu.run configs/demo.toml

check: setup ## check format, lint, types and the order of imports
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(RUN) mypy
	$(RUN) pytest -n 0 tests/ground/test_house.py

format: setup ## format every file and mend what ruff can mend
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test: setup ## run the test suite
	$(RUN) pytest

test-flwr: setup ## run the test suite with another Flower, as in make test-flwr FLWR=1.42
	test -x .venv-flwr-$(FLWR)/bin/python || $(PYTHON) -m venv .venv-flwr-$(FLWR)
	grep -vE "^(flwr|uv|certifi)==" constraints.txt > .venv-flwr-$(FLWR)/constraints.txt
	.venv/bin/uv pip install --quiet --python .venv-flwr-$(FLWR)/bin/python \
		--constraint .venv-flwr-$(FLWR)/constraints.txt --editable . --group dev "flwr==$(FLWR).*"
	.venv-flwr-$(FLWR)/bin/python -m pytest
	.venv-flwr-$(FLWR)/bin/python -m pytest -n 0 -m slow tests/engines/test_run.py -k both_engines

dist: setup ## build sdist and wheel in dist/ and check their metadata
	rm -rf dist
	.venv/bin/uv build --quiet
	.venv/bin/uvx --quiet twine check --strict dist/*

results: setup ## make the tables and figures of results/
	$(RUN) lit_fedbabu.report results/cifar10-* --out results

options: setup ## write docs/options.md from lit_fedbabu/config/__init__.py
	$(RUN) lit_fedbabu.config.text > docs/options.md

docs: options ## build the site of docs/ in site/, broken links being errors
	.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

bench: setup ## measure a round beside two plain loops
	$(RUN) benchmarks.bench

bench-decoding: setup ## measure how many images are decoded in a second
	$(RUN) benchmarks.decoding

bench-start: setup ## measure the seconds from a command to its first result
	$(RUN) benchmarks.start

scale: setup ## measure rounds among many clients
	$(RUN) benchmarks.scale

golden: setup ## write tests/golden anew: only for a reason
	$(RUN) pytest tests/server/test_golden.py --rewrite-golden

setup: .venv/.ready ## prepare .venv at the versions of constraints.txt

.venv/.ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --constraint constraints.txt uv
	.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
		--constraint constraints.txt --editable . --group dev
	touch $@

tensorboard: setup ## show tb_logs/
	$(RUN) tensorboard.main --logdir tb_logs
