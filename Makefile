# Each target does all its own set-up from a clone with python3, node and make.
# --no-compile: Python compiles what is used when it is used, which is a small part.

PYTHON ?= python3
# The tests start hundreds of processes, and each would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: help local test check quick format bench mutants soak docs openapi deploy e2e scan audit cost release-snapshot dist requirements clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r requirements-dev.txt
	touch $@

.venv-sam/.done: requirements-sam.txt
	$(PYTHON) -m venv .venv-sam
	.venv-sam/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r requirements-sam.txt
	touch $@

# botocore as AWS may put it into the runtime tomorrow, for the test that the functions start with it.
.venv-newest/.done: requirements.txt $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade --target .venv-newest \
	  boto3 botocore s3transfer
	touch $@

.venv-checkov/.done: requirements-checkov.txt
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r requirements-checkov.txt
	touch $@

node_modules/.done: package.json package-lock.json
	npm ci --no-audit --no-fund --loglevel=error
	touch $@

local: $(VENV)/.run ## run Knock on this machine
	$(BIN)/python -m local up $(ARGS)

test: check .venv-newest/.done ## run the checks and all tests
	$(BIN)/python -m pytest -n 3 --dist worksteal --cov --cov-report=term --cov-fail-under=90 $(ARGS)

check: ## the quick part of `test`: linters, types and fast scanners
	@$(MAKE) --no-print-directory -j 2 .check-types .check-sam .check-template .check-code .check-machines

# Two at a time, set-up too.
.PHONY: .check-types .check-sam .check-template .check-code .check-machines
.check-types: $(VENV)/.dev
	$(BIN)/mypy functions clients local tools

.check-sam: .venv-sam/.done
	SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=eu-west-1 .venv-sam/bin/sam validate --lint

.check-template: $(VENV)/.dev
	$(BIN)/cfn-lint template.yaml --regions us-east-1 eu-central-1 ap-southeast-6 cn-north-1 us-gov-west-1

.check-code: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml functions clients local tools

.check-machines: node_modules/.done
	node_modules/.bin/asl-validator --json-path statemachine/grant.asl.json
	node_modules/.bin/asl-validator --json-path statemachine/close.asl.json

# Of the proofs, those that are small; of the template, what needs no SAM; nothing that starts a stack.
QUICK := tests/unit tests/adapters tests/template tests/statemachine/test_definition.py \
  tests/clients/test_admin_tags.py tests/clients/test_cli.py::test_a_duration_is_read_as_the_api_reads_it \
  tests/proofs/test_operations.py tests/proofs/test_time_budget.py \
  'tests/proofs/test_interleavings.py::test_the_invariants_hold_in_every_order[revoked_and_expired_at_once]' \
  --deselect tests/template/test_template.py::TestTools

quick: $(VENV)/.dev node_modules/.done ## linters, types and the tests that are quick and need no stack, in one to four minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy functions clients local tools
	$(BIN)/python -m pytest -n 3 --dist worksteal -q $(QUICK) $(ARGS)

bench: $(VENV)/.dev ## measure Knock on this machine (ARGS='--only lag', '--json FILE', '--quick')
	@$(BIN)/python -m bench $(ARGS)

format: $(VENV)/.dev ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/.run ## write docs/openapi.json anew, from the code
	PYTHONPATH=functions $(BIN)/python -m tools.openapi docs/openapi.json

deploy: $(VENV)/.run .venv-sam/.done ## deploy to your AWS account (ARGS="--file knock.toml" asks nothing)
	@$(BIN)/python -m tools.deploy $(ARGS)

e2e: $(VENV)/.dev ## sign off a stack on AWS, with your credentials (STACK=name)
	KNOCK_SIGNOFF_STACK=$(or $(STACK),$(error say which stack: make e2e STACK=name)) \
	  $(BIN)/python -m pytest tests/signoff --timeout 600 $(ARGS)

# Not in `test`: checkov brings a hundred libraries and 300 MB of its own, for one file that changes seldom.
scan: check .venv-checkov/.done ## every scanner that works offline: those of `check`, and checkov
	.venv-checkov/bin/checkov --file template.yaml --config-file .checkov.yaml

audit: $(VENV)/.dev ## look the pinned libraries up among known vulnerabilities (needs pypi.org itself)
	for name in requirements requirements-dev requirements-sam requirements-checkov; do \
	  $(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $$name.txt || exit 1; done

docs: openapi cost .venv-sam/.done node_modules/.done ## write anew all that is generated in README and docs/: transcripts, pictures, references
	$(BIN)/python -m bench.plots
	$(BIN)/python -m tools.diagram
	$(BIN)/python -m tests.docs.player README.md docs/tour.md
	$(BIN)/python -m tools.recording
	WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/clients/test_docs.py tests/clients/test_admin_docs.py \
	  tests/browser/test_design.py::test_the_readmes_picture_is_there

cost: export POWERTOOLS_LOG_LEVEL := CRITICAL
cost: $(VENV)/.dev ## write docs/cost.md anew, from measured calls and docs/cost/prices.json
	PYTHONPATH=functions $(BIN)/python -m tools.cost

mutants: $(VENV)/.dev node_modules/.done ## break the code in every way a test names, and see that it notices
	@$(BIN)/python -m tools.mutants $(ARGS)

soak: $(VENV)/.dev .venv-sam/.done .venv-newest/.done node_modules/.done ## all tests on each store, then random schedules for an hour; with ARGS those alone ("--hours 8 --from 123", "--hostile")
	@PYTHONPATH=functions:clients $(BIN)/python -m tools.soak $(or $(ARGS),--suites)

release-snapshot: $(VENV)/.dev ## write down what the current version deploys
	$(BIN)/python -m tools.snapshot

dist: $(VENV)/.run ## build what a release gives to users, into dist/: the wheel, knock.pyz, knock.sh, checksums
	@$(BIN)/python -m tools.dist $(ARGS)

requirements: $(VENV)/.dev ## pin again what requirements*.in ask for
	for name in requirements requirements-dev requirements-sam requirements-checkov; do \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
	    --upgrade -o $$name.txt $$name.in || exit 1; done

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-sam .venv-checkov .venv-newest node_modules dist .aws-sam .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
