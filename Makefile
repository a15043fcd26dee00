PYTHON ?= python3
RUN := .venv/bin/python -m

.PHONY: demo test results golden bench scale setup tensorboard

demo: setup
	$(RUN) lit_fedbabu.run configs/demo.toml

test: setup
	$(RUN) pytest

results: setup
	$(RUN) lit_fedbabu.report results/cifar10-* --out results

bench: setup
	$(RUN) benchmarks.bench

scale: setup
	$(RUN) benchmarks.scale

golden: setup
	$(RUN) pytest tests/test_golden.py --rewrite-golden

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --constraint constraints.txt uv
	.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
		--constraint constraints.txt --editable . --group dev
	touch $@

tensorboard: setup
	$(RUN) tensorboard.main --logdir tb_logs
