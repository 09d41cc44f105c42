# Two commands do everything: `make demo` and `make test`. Each sets up what it needs and starts from a bare Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo load soak speed browser lint quick test test-full clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The main job on embedded data. A table: the trust rule beside the mean and a robust rule, without an attack and with three
# Byzantine hospitals of ten. Then who was trusted, and the same model's scans attacked, detected and purified.
DEMO := runs/demo/trust-min_max-seed0
demo: $(VENV)/.ready
	$(BIN)/fedplatform compare lesions --name demo --size 32 --scans 560 --rounds 4 --local-epochs 3 --batch-size 16 \
		--model "small_resnet(width=8)" --augmentation anatomy --rules mean,nnm+trimmed_mean,trust --attacks none,min_max
	$(BIN)/fedplatform report $(DEMO)
	$(BIN)/fedplatform defend $(DEMO) --engine local --autoencoder-rounds 1 --purifier-rounds 4 --tuning-rounds 1 --sensor-rounds 5
	$(BIN)/fedplatform evaluate $(DEMO) --tiers T0,T2 --epsilons 8/255 --scans 60 \
		--defences nearest_neighbour,no_defence,purify_all_tuned,full

# The endpoint of the demo's run under load, on this machine alone; docs/results/load.csv holds the figures.
load: $(VENV)/.ready
	test -d $(DEMO)/defence || $(MAKE) demo
	$(BIN)/python -m benchmarks.load $(DEMO)

# Twenty random schedules of faults on a Ray cluster on this machine; docs/results/soak.csv holds what came of them.
soak: $(VENV)/.ready
	$(BIN)/python -m benchmarks.soak

# This project and its peers on the same work, in turns: docs/performance.md. The peers get an environment of their own.
speed: $(VENV)/.ready
	$(BIN)/python -m benchmarks.speed

# A browser looks at the report as a person would; without one those tests say that they were skipped.
browser:
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null) \
		|| echo "no browser could be installed: the tests that look at pages will be skipped"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Three tiers of tests; CONTRIBUTING.md says what each runs. Workers share trained fixtures, kept in .cache/.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.ready lint
	$(PYTEST) -m unit

test: $(VENV)/.ready browser lint
	$(PYTEST) -m "not (cluster or slow)"

test-full: $(VENV)/.ready browser lint
	$(PYTEST)

clean:
	rm -rf $(VENV) .venv-peers .cache build dist *.egg-info
