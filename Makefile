# The habits people know. `make check` is what CI runs.
PYTHON ?= python
SMOKE := $(shell mktemp -d -u)

.PHONY: smoke check figures

smoke: ## every script, tiny, on the CPU
	$(PYTHON) xor_grokking.py --p 400 --n 24 --width 16 --steps 20 --jr 1.0 --device cpu --out_dir $(SMOKE)
	rm -r $(SMOKE)

check: ## lint, types, tests
	ruff check .
	ruff format --check .
	mypy utils.py
	pytest

figures: ## draws the figures of all finished runs again
	set -e; for config in runs/*/*/config.yaml; do \
		$(PYTHON) "$$(basename "$$(dirname "$$(dirname "$$config")")").py" --config "$$config"; \
	done
