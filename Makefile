# The habits people know. `make check` is what CI runs.
PYTHON ?= python
TINY := --device cpu --out_dir $(shell mktemp -d -u) --steps
IMAGES := $(shell mktemp -d -u)

.PHONY: smoke check figures xor test slurm leaderboard

smoke: ## every script, tiny, on the CPU
	$(PYTHON) xor_grokking.py --p 400 --n 24 --width 16 --jr 1.0 $(TINY) 20
	$(PYTHON) comparison_to_ntk.py --dataset digits --points 60 --width 8 $(TINY) 20
	$(PYTHON) jacobian_rank.py --dataset digits --points 60 --width 8 --jr 1e-3 $(TINY) 20
	$(PYTHON) accelerating_grokking.py --dataset digits --points 60 --width 16 --jr 1e-3 $(TINY) 20
	$(PYTHON) inhibiting_generalisation.py --dataset digits --points 60 --width 16 --jr 5.0 $(TINY) 20
	$(PYTHON) linear_regions.py --dataset digits --points 60 --width 8 --init_scale 1 --half_width 1 $(TINY) 20
	$(PYTHON) modular_addition.py --p 11 --d_model 16 --d_mlp 16 --jr 1e-3 $(TINY) 20
	$(PYTHON) spectral_shift.py --p 11 --width 16 --laplacian_penalty 0.1 $(TINY) 20
	$(PYTHON) norm_minimisation.py --p 7 --width 64 --sgd --lr 0.02 $(TINY) 20
	$(PYTHON) circuit_efficiency.py --p 5 --width 24 --least_pairs 6 --most_pairs 20 --sizes 2 --seeds 1 $(TINY) 4
	$(PYTHON) sparse_parity.py --n 12 --width 20 --samples 70 --test_samples 30 $(TINY) 20
	$(PYTHON) sequence_copying.py --samples 10 --test_samples 20 --jr 0.01 $(TINY) 20
	$(PYTHON) order_parameters.py --p 11 --width 16 $(TINY) 20
	PYTHONPATH=tests $(PYTHON) -c "import helpers; helpers.write_cifar(helpers.Path('$(IMAGES)'))"
	$(PYTHON) delayed_robustness.py --data_dir $(IMAGES) --points 12 --filters 2 --attack_points 4 --num_attacks 2 --jr 0.001 $(TINY) 20
	$(PYTHON) accelerate.py --task sparse_parity --method grokalign $(TINY) 20
	$(PYTHON) sweep.py xor_grokking.py --p 400 --n 24 --width 16 --jr 0 1.0 $(TINY) 20

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
	ruff check .
	ruff format --check .
	mypy utils.py
	$(PYTHON) report.py --check
	pytest

figures: ## draws the figures of all finished runs again
	set -e; for config in runs/*/*/config.yaml; do \
		$(PYTHON) "$$(basename "$$(dirname "$$(dirname "$$config")")").py" --config "$$config"; \
	done
