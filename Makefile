# The habits people know. `make check` is what CI runs.
# An environment that is active, else the one that `make xor` and `make test` set up.
PYTHON ?= $(or $(if $(VIRTUAL_ENV)$(CONDA_PREFIX),python),$(wildcard .venv/bin/python),python)

.PHONY: smoke check figures xor test slurm leaderboard

# A path of the caller's, such as .venv/bin/python, is looked up from here, not from the folder of the runs.
smoke: override PYTHON := $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))
smoke: ## every script, tiny, on the CPU
	cd $$(mktemp -d) \
	&& PYTHONPATH=$(CURDIR)/tests $(PYTHON) -c "import helpers; helpers.write_cifar(helpers.Path('data'))" \
	&& $(PYTHON) $(CURDIR)/sweep.py $(CURDIR)/configs/tiny.yaml --device cpu

.venv/ran: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet -r requirements.txt
	touch $@

.venv/tested: requirements.txt requirements-dev.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet -r requirements-dev.txt
	touch $@

xor: .venv/ran ## Figure 4, bottom row, on a machine that has nothing but Python and make
	.venv/bin/python xor_grokking.py --jr 1.0

test: .venv/tested ## the tests, likewise
	.venv/bin/python -m pytest

slurm: ## the tests that need a cluster, on a SLURM that this machine gets for them; as root
	PYTHON=$(PYTHON) .ci/slurm

SCORES := runs/accelerate/scores.yaml
leaderboard: ## trials, scores and costs of METHOD (or of all methods), and the tables
	$(PYTHON) sweep.py configs/leaderboard.yaml $(if $(METHOD),--method $(METHOD)) --runs_per_process 24
	$(PYTHON) report.py leaderboard
	test ! -f $(SCORES) || $(PYTHON) sweep.py $(SCORES) --runs_per_process 24
	$(PYTHON) benchmarks/methods.py
	$(PYTHON) report.py leaderboard

check: ## lint, types, tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy utils.py
	$(PYTHON) report.py --check
	$(PYTHON) -m pytest

figures: ## draws the figures of all finished runs again
	set -e; for config in runs/*/*/config.yaml; do \
		grep -qs '^  finished:' "$$config" || continue; \
		$(PYTHON) "$$(basename "$$(dirname "$$(dirname "$$config")")").py" --config "$$config"; \
	done
