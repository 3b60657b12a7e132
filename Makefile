# demo, test, test-fast, bench, results, lint and docs each make .venv themselves when it is missing or out of date.
# Works with GNU make 3.81 (macOS) and later.

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# The first command that really runs and is a Python 3.9 to 3.12: a pyenv shim may be there and
# still fail. 3.12 comes with another TensorFlow, see setup.py. PYTHON=... is taken alone.
CANDIDATES = $(if $(PYTHON),'$(PYTHON)',python3.11 python3.10 python3.9 python3.12 python3)
IS_SUPPORTED := import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))
BASE_PYTHON = $(shell for p in $(CANDIDATES); do \
  if "$$p" -c '$(IS_SUPPORTED)' >/dev/null 2>&1; then echo "$$p"; break; fi; done)
FOUND = $(if $(PYTHON),PYTHON=$(PYTHON) is $(shell '$(PYTHON)' --version 2>/dev/null || \
  echo 'not a command that runs'),none was found on the PATH)
NO_PYTHON = Python 3.9 to 3.12 is needed (TensorFlow 2.15 and 2.19 have no other); $(FOUND). \
Install one ("apt install python3.11 python3.11-venv", "brew install python@3.11" or \
"pyenv install 3.11") and name it: make $(or $(MAKECMDGOALS),test) PYTHON=python3.11

# Where none is found, uv brings one along. UV=no refuses, UV=/path/to/uv names it.
UV_PYTHON := 3.11
UV_HOME := .uv
USES_UV = $(if $(PYTHON)$(filter no,$(UV))$(BASE_PYTHON),,yes)
NO_VENV = $$p cannot make virtual environments: install its venv module \
(on Debian and Ubuntu: apt install python$$v-venv) and run make again

# Part of setup.py up to Python 3.11; on 3.12 it is installed without what it asks for, see there.
TF_PRIVACY := tensorflow-privacy==0.9.0

# A .venv that was not finished, or whose Python no longer runs, is made anew.
FRESH = $(shell [ -f '$(STAMP)' ] && $(PY) -c '$(IS_SUPPORTED)' >/dev/null 2>&1 || echo fresh)

define MAKE_VENV_BY_UV
echo 'No Python 3.9 to 3.12 was found: uv brings Python $(UV_PYTHON) along (UV=no refuses) ...'; \
uv='$(or $(UV),$(shell command -v uv))'; \
if [ -z "$$uv" ]; then \
  echo '  installing uv into $(UV_HOME) ...'; \
  python3 -m venv '$(UV_HOME)' && '$(UV_HOME)/bin/python' -m pip install -qq uv || { \
    echo 'uv could not be installed. $(NO_PYTHON)' >&2; exit 2; }; \
  uv='$(UV_HOME)/bin/uv'; \
fi; \
rm -rf '$(VENV)'; \
"$$uv" venv --quiet --seed --python '$(UV_PYTHON)' '$(VENV)' || { \
  echo 'uv could not bring a Python along. $(NO_PYTHON)' >&2; exit 2; }
endef
define MAKE_VENV
p='$(or $(BASE_PYTHON),$(error $(NO_PYTHON)))'; \
v=$$("$$p" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
full=$$("$$p" -c 'import platform; print(platform.python_version())'); \
"$$p" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(NO_VENV)" >&2; exit 2; }; \
echo "Making $(VENV) with Python $$full ... (about a minute, and the download)"; \
rm -rf '$(VENV)'; \
"$$p" -m venv '$(VENV)'
endef
UPDATE_VENV = echo 'Bringing $(VENV) up to date with setup.py ...'; rm -f '$(STAMP)'

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast acceptance bench results lint docs clean fresh

help:
	@echo 'make demo    train a small private GAN on the digits that come with the package'
	@echo 'make test    run the tests (test-fast leaves out those that train)'
	@echo 'make acceptance   run the long tests: other processes, two devices, a browser'
	@echo 'make bench   time the private steps and compare their memory, on this machine'
	@echo 'make results train all runs of a table of the README (hours), or what is missing of them'
	@echo 'make lint    check the code with ruff and its types with mypy'
	@echo 'make docs    build the documentation into site/; a warning fails it'
	@echo 'make clean   remove .venv and what the tools left behind (never runs/ and results/)'
	@echo ''
	@echo 'ARGS="..." is passed on:     make demo ARGS="--target_epsilon=3", make test ARGS="-k poisson"'
	@echo 'PYTHON=... makes .venv with: make test PYTHON=python3.10 (3.9 to 3.12)'
	@echo 'UV=no forbids uv to install a Python when none of these is found'

demo: $(STAMP)
	@$(PY) -m tf_efsgd.launch --flagfile=demo.flags $(ARGS)

# Most of a test is Python and tracing, on one core. A file stays in one process: fixtures are
# shared in it. The longest come first, in the order of tests/conftest.py.
PYTEST = $(PY) -m pytest -n auto --maxprocesses=4 --dist=loadfile

test: $(STAMP)
	@$(PYTEST) -m 'not acceptance' $(ARGS)

# Without the files that train: a first answer while you work.
test-fast: $(STAMP)
	@$(PYTEST) -m 'not slow and not acceptance' $(ARGS)

acceptance: $(STAMP)
	@$(PYTEST) -m acceptance $(ARGS)

bench: $(STAMP)
	@$(PY) -m tf_efsgd.benchmark $(ARGS)

results: $(STAMP)
	@$(PY) -m tf_efsgd.results $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check $(or $(ARGS),.)
	@$(PY) -m ruff format --check $(or $(ARGS),.)
	@$(if $(ARGS),,$(PY) -m mypy)

# The theme's notice of other programs is no warning of ours.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet $(ARGS)
	@echo 'Open $(or $(patsubst --site-dir=%,%,$(filter --site-dir=%,$(ARGS))),site)/index.html'

# The stamp is written last. pip is brought up to date first: old ones look for versions that
# fit together for many minutes. What builds the package is installed, not fetched again for it.
$(STAMP): setup.py $(FRESH)
	@set -e; \
	$(if $(FRESH),$(if $(USES_UV),$(MAKE_VENV_BY_UV),$(MAKE_VENV)),$(UPDATE_VENV)); \
	PIP_DISABLE_PIP_VERSION_CHECK=1; export PIP_DISABLE_PIP_VERSION_CHECK; \
	echo '  build tools ...'; \
	$(PY) -m pip install -qq --upgrade pip 'setuptools>=64,<81' 'wheel<0.46'; \
	echo '  TensorFlow, TF Privacy and the rest of setup.py ...'; \
	$(PY) -m pip install -qq --no-build-isolation -e '.[dev]'; \
	$(PY) -m pip install -qq --no-deps --ignore-requires-python '$(TF_PRIVACY)'; \
	touch '$(STAMP)'; \
	echo '$(VENV) is ready.'

clean:
	rm -rf $(VENV) $(UV_HOME) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
