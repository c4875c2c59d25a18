# Two commands are enough to start: `make book` and `make test`.
# Both make the environment in .venv first, from the exact lock.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Two processes with one thread each do more work than one with two.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help book test quicktest lint notebooks claims colab matrix fuzz bench sampling ablation scoreboard cover slides solutions workshop train ship stamp clean
.PHONY: matrix-oldest matrix-newest

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

book: $(READY) ## Build the book into _build/html/index.html
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "Open _build/html/index.html"

test: $(READY) lint ## Run every test (minutes)
	$(BIN)/python -m pytest tests notebooks -n 2 \
		--nbval-lax --nbval-current-env

quicktest: $(READY) lint ## Run lint and the tests that take seconds
	$(BIN)/python -m pytest tests -n 2 -m "not slow"

lint: $(READY) ## Check style, formatting and spelling, notebooks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell .

notebooks: $(READY) ## Execute notebooks in place (NAMES="01 02", or all)
	$(BIN)/python tools/notebooks.py run $(NAMES)

claims: $(READY) ## Measure with several seeds what notebooks claim
	$(BIN)/python tools/claims.py $(NAMES)

colab: $(READY) ## Run notebooks as on Colab (NAMES="01 02", or all)
	PYTHONPATH=tools $(BIN)/python tests/notebooks/colab.py \
		$(NAMES) $(OPTIONS)

matrix: matrix-oldest matrix-newest ## Test on the versions that are allowed

# The lower bounds of pyproject.toml where they can stand together, and what
# is newest today; both with Python as it is in .venv.
matrix-oldest: RESOLUTION := lowest-direct
matrix-newest: RESOLUTION := highest
matrix-oldest matrix-newest: $(READY)
	$(BIN)/python -m venv --clear _build/$@
	_build/$@/bin/python -m pip install --quiet uv==0.13.9
	_build/$@/bin/uv pip compile pyproject.toml --extra stream --quiet \
		--resolution $(RESOLUTION) --output-file _build/$@/versions.txt
	_build/$@/bin/uv pip install --quiet --python _build/$@ \
		--constraint _build/$@/versions.txt --editable ".[book,test]"
	_build/$@/bin/python -m pytest tests/unit -n 2 -m "not slow"
	_build/$@/bin/python -m pytest tests/notebooks/test_papermill.py -n 2

FUZZ_SECONDS ?= 60

# atheris is for nothing else, and is kept out of the lock and of .venv.
fuzz: $(READY) ## Look for bytes that break our readers (FUZZ_SECONDS=600)
	$(BIN)/python -m pip install --quiet --target _build/atheris --upgrade \
		atheris==3.0.0
	for reader in table checkpoint header; do \
		PYTHONPATH=_build/atheris:tests:tools:benchmarks $(BIN)/python \
			tests/unit/fuzz.py $$reader -max_total_time=$(FUZZ_SECONDS) || exit; \
	done

# glibc hands large blocks back to the system after each use; the page faults
# of getting them again take a sixth of a training step. These keep them.
train bench ablation sampling scoreboard: export MALLOC_MMAP_THRESHOLD_ = 1073741824
train bench ablation sampling scoreboard: export MALLOC_TRIM_THRESHOLD_ = 8589934592
train bench ablation sampling scoreboard: export MALLOC_TOP_PAD_ = 268435456

BENCH ?= gan_step

bench: $(READY) ## Time our steps against the published (BENCH=diffusion_step)
	$(BIN)/python benchmarks/$(BENCH).py $(OPTIONS)

sampling: $(READY) ## Measure v3's quality against sampling steps
	$(BIN)/python benchmarks/sampling.py $(OPTIONS)

ablation: $(READY) ## Take models apart (STUDY=memory, generator, diffusion)
	$(BIN)/python benchmarks/ablation.py $(STUDY) $(OPTIONS)

scoreboard: $(READY) ## Measure all models and baselines, and write the page
	$(BIN)/python benchmarks/scoreboard.py $(OPTIONS)
	$(BIN)/python tools/scoreboard_page.py

cover: $(READY) ## Draw the cover and the social preview from the models
	$(BIN)/python tools/cover.py

slides: $(READY) ## Write the slides into _build/html/slides
	$(BIN)/python tools/slides.py _build/html/slides

solutions: $(READY) ## Collect all solutions from the notebooks on one page
	$(BIN)/python tools/solutions.py

workshop: $(READY) ## Pack the book for a class without network (WHEELS=1)
	$(BIN)/python tools/workshop.py --wheels $(WHEELS) --pythons $(PYTHONS)

train: $(READY) ## Train a model, or go on with it (MODEL=v1 OPTIONS=--bf16)
	$(BIN)/python tools/train.py $(MODEL) $(OPTIONS)

ship: $(READY) ## Measure trained models, and package one (MODEL=v1)
	$(BIN)/python tools/ship.py $(MODEL)

stamp: $(READY) ## Move the project's address everywhere (REPO=owner/name)
	@test -n "$(REPO)" || \
		{ echo "Say where to: make stamp REPO=owner/name" >&2; exit 2; }
	$(BIN)/python tools/notebooks.py stamp $(REPO)

clean: ## Remove the built book and caches, and keep .venv
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not;" \
		"name one that is: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
