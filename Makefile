# Two commands matter: `make paper` and `make test`. Both set up .venv on their first run.
.DEFAULT_GOAL := help
.PHONY: help paper site test test-slow lint readme lock clean
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.installed
SITE_STAMP := .venv/.installed-site

help: ## show this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

paper: $(STAMP) ## run the notebooks (quick profile) and write figures/
	$(BIN)/minexp paper --profile quick --jobs 2

site: $(SITE_STAMP) ## build the site from the executed notebooks into build/site
	$(BIN)/python -m minexp.site

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest

test-slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(STAMP) ## check code and notebooks with ruff, the package's types with mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

readme: $(STAMP) ## write the README's measured numbers from the files commands wrote
	$(BIN)/python -m minexp.readme

lock: ## write both locks anew from pyproject.toml (needs uv)
	uv pip compile --universal --generate-hashes --extra test --python-version 3.11 --no-header -q pyproject.toml -o requirements.lock
	python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["site"], sep="\n")' | \
	uv pip compile --universal --generate-hashes -c requirements.lock --python-version 3.11 --no-header --no-annotate -q - -o requirements-site.lock

clean: ## remove the environment and caches; figures and weights stay
	rm -rf .venv .doit* .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	find minexp tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +
	rm -f figures/executed/*.partial.ipynb

# The stamp is removed first and written last: a set-up that was interrupted starts over, one
# that is merely older than the lock is brought up to date in place.
$(STAMP): requirements.lock pyproject.toml
	@test -e $@ || rm -rf .venv
	@rm -f $@
	@python=$$(command -v python3.11 || command -v python3) || { echo "minexp needs Python 3.11 or newer on the PATH" >&2; exit 1; }; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "minexp needs Python 3.11 or newer; $$python is $$("$$python" -V 2>&1)" >&2; exit 1; }; \
	test -x $(BIN)/python || "$$python" -m venv .venv
	@echo "Installing the locked packages into .venv (some minutes the first time)" >&2
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --require-hashes -r requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@

# The site's packages have a lock of their own, held to the versions of the first: notebooks depend
# on that one, and a change of the site's must not make them stale.
$(SITE_STAMP): $(STAMP) requirements-site.lock
	@echo "Installing the site's packages into .venv" >&2
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --require-hashes -r requirements-site.lock
	@touch $@
