# make demo   set up and run the main job on the embedded defaults
# make test   set up and run all tests
# make compose-test  build and run docker-compose.yml until the loop closed, then kill its services
# make check  formatting, lint, types, import rules, generated code

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

.PHONY: demo setup test check format protos compose-test bench bench-compression clean

demo: $(STAMP)
	$(BIN)/edgeloop demo

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/setup_venv.py
	$(PYTHON) scripts/setup_venv.py $(VENV)
	touch $@

# Two side by side, and whoever is done first takes from the other; what starts Ray wants the machine.
# (Ray decides at its first import in a process whether it asks for a token: nothing else is collected there.)
test: $(STAMP) check
	$(BIN)/pytest -n 2 --dist worksteal -m "not alone" tests
	$(BIN)/pytest -m alone tests/integration tests/e2e

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/gen_protos.py --check

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(STAMP)
	$(BIN)/python scripts/gen_protos.py

compose-test:
	$(PYTHON) scripts/compose_test.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Hours on a CPU; '$(BIN)/python -m benchmarks.compression --quick' takes minutes.
bench-compression: $(STAMP)
	$(BIN)/python -m benchmarks.compression
	$(BIN)/python -m benchmarks.compression_depth

clean:
	rm -rf $(VENV) out build *.egg-info
