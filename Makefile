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

# The main job on the embedded data: a plain mean and a robust rule, without and with attackers, ending in a table; then scans
# that are attacked, caught, cleaned and diagnosed, ending in a page.
demo: $(VENV)/.ready
	$(BIN)/fedplatform compare lesions --name demo --rounds 5 --rules mean,nnm+trimmed_mean --attacks none,sign_flip
	test -f runs/demo-scan/report.html || $(BIN)/fedplatform run lesions --name demo-scan --model "small_resnet(width=8)" \
		--augmentation anatomy --byzantine 0 --rule mean --rounds 8 --batch-size 16
	$(BIN)/fedplatform defend runs/demo-scan --autoencoder-rounds 3 --purifier-rounds 6 --tuning-rounds 2 --sensor-rounds 8
	$(BIN)/fedplatform evaluate runs/demo-scan --tiers T0,T2 --epsilons 4/255 --scans 60 \
		--defences nearest_neighbour,no_defence,purify_all_tuned,full

# The endpoint of the demo's run under load, on this machine alone; docs/results/load.csv holds the figures.
load: $(VENV)/.ready
	test -d runs/demo-scan/defence || $(MAKE) demo
	$(BIN)/python -m benchmarks.load runs/demo-scan

# Twenty random schedules of faults on a Ray cluster on this machine; docs/results/soak.csv holds what came of them.
soak: $(VENV)/.ready
	$(BIN)/python -m benchmarks.soak

# This project and its peers on the same work, in turns: docs/performance.md. The peers get an environment of their own.
speed: $(VENV)/.ready
	$(BIN)/python -m benchmarks.speed

# A browser looks at the report as a person would; without one those tests say that they were skipped.
browser:
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null) \
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
