# Two environments, both made when first needed and brought up to date when their sources change:
#   .venv      the package as its users have it: a built wheel, compiled where there is a C compiler
#   .venv-dev  the source tree itself, never compiled, and the tools of development
# PYTHON=/path/to/python chooses the interpreter, CC the C compiler, PYTEST_ARGS="-k name" adds to pytest's arguments.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1

CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
RECENT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in $(CANDIDATES); do "$$python" -c "$(RECENT)" 2>/dev/null && echo "$$python" && break; done)

RUN := .venv/bin
DEV := .venv-dev/bin
BUILD_FILES := pyproject.toml setup.py README.md LICENSE
SOURCES := $(BUILD_FILES) $(shell find proxy registry -type f -not -path '*/.*' -not -name '*.py[co]')
# The tests of the compiled modules; the others know no difference between the two variants, or would cost too much twice.
INTERPRETED_ONLY := $(patsubst %,tests/net/test_%.py,admission auth_query backend_handshake certificates client_authentication \
	client_handshake descriptors direct_tls handshake_io listener places real_address tls tls_turns) \
	$(patsubst %,tests/e2e/test_%.py,client_certificates console_in_trouble demanding_servers driver_matrix dump_and_restore live_details \
	load_balancers login_timing one_stranger proofs registry_outages server_tls shutdown_details strangers tls_documentation)
COMPILED_TESTS := $(filter-out $(INTERPRETED_ONLY),$(wildcard tests/wire/test_framing.py tests/session/test_*.py \
	tests/pool/test_*.py tests/net/test_*.py tests/fuzz/test_*.py tests/e2e/test_*.py tests/packaging/test_build_info.py))
PYTEST := python -m pytest --numprocesses auto --dist loadfile --quiet $(PYTEST_ARGS)

.PHONY: help demo test test-interpreted test-compiled lint format fuzz bench bench-big bench-registry drivers wheel clean FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s%s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## Two PostgreSQL servers, four tenants, the proxy: everything to try it out (ARGS="--help")
	@exec $(RUN)/pgtenant demo $(ARGS)

test: lint test-interpreted test-compiled ## Everything that is checked before a change goes in

test-interpreted: .venv-dev/.installed ## The whole suite, from the source tree
	@PGTENANT_EXPECT_RELAY=interpreted $(DEV)/$(PYTEST)

test-compiled: .venv/.testable ## The tests of the relay and the whole proxy, against the built package
	@relay="$$($(RUN)/python -I -c 'from proxy.version import build_info as i; print(i().reason or i().relay)')"
	case "$$relay" in
	compiled) ;;
	"no working C compiler"*)
		echo "The compiled relay was NOT tested: $$relay."
		echo "Install one, then: make clean test"
		exit 0 ;;
	*)
		echo "The relay could have been compiled but was not: $$relay." >&2
		echo "To see why: REQUIRE_COMPILED=1 $(RUN)/pip install --force-reinstall --no-deps ." >&2
		exit 1 ;;
	esac
	root="$$PWD"; elsewhere="$$(mktemp -d)"; trap 'rm -rf "$$elsewhere"' EXIT
	cd "$$elsewhere"
	PGTENANT_EXPECT_RELAY=compiled "$$root"/$(RUN)/$(PYTEST) --config-file "$$root/pyproject.toml" --rootdir "$$root" \
		--override-ini pythonpath=tests $(COMPILED_TESTS:%="$$root"/%)

lint: .venv-dev/.installed ## ruff, mypy and the rules of which room may import which
	@failed=0
	$(DEV)/ruff check --quiet . || failed=1
	$(DEV)/ruff format --quiet --check . || { echo "Not formatted as ruff would: make format" >&2; failed=1; }
	$(DEV)/mypy --no-error-summary || failed=1
	report="$$($(DEV)/lint-imports --no-logo 2>&1)" || { echo "$$report" >&2; failed=1; }
	exit $$failed

format: .venv-dev/.installed ## Format the source and mend what ruff can mend
	@$(DEV)/ruff format --quiet .
	$(DEV)/ruff check --quiet --fix .

fuzz: .venv-dev/.installed ## Try the readers of what others send with made-up bytes, with atheris (ARGS="--help")
	@$(DEV)/python -c 'import atheris' 2>/dev/null || $(DEV)/pip install -qq 'pgtenant[fuzz]' || {
		echo "atheris, which finds the bytes to try, cannot be installed here; nothing was fuzzed." >&2
		echo "It is made for CPython on x86-64 Linux.  The suite tries random bytes without it: make test-interpreted PYTEST_ARGS=tests/fuzz" >&2
		exit 1
	}
	cd tests && PYTHONPATH=..:. exec ../$(DEV)/python -m harness.fuzz $(ARGS)

bench: .venv/.testable ## Measure against a direct connection and against PgBouncer (ARGS="--help")
	@$(RUN)/python -m bench $(ARGS)

drivers: .venv/.testable ## Play the same scenarios with many drivers, directly and through the proxy (ARGS="--help")
	@root="$$PWD"; cd tests
	PYTHONDONTWRITEBYTECODE=1 "$$root"/$(RUN)/python -m drivers $(ARGS)

bench-big: .venv/.testable ## Send values, rows and COPY of gigabytes through it and watch its memory (ARGS="--help")
	@$(RUN)/python -m bench.big $(ARGS)

bench-registry: .venv/.testable ## Apply a manifest of 20,000 tenants to SQLite and to PostgreSQL (ARGS="--help")
	@$(RUN)/python -m bench.registry $(ARGS)

wheel: .venv-dev/.installed ## Build dist/*.whl, compiled or not at all
	@REQUIRE_COMPILED=1 $(DEV)/python -m build --wheel

clean: ## Remove both environments and everything that was built
	@rm -rf .venv .venv-dev .venv-drivers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find proxy registry tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find proxy registry -name '*.so' -delete

.venv/.created .venv-dev/.created:
	@if [ -z "$(PYTHON)" ]; then
		echo "pgtenant needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv)." >&2
		echo "If it has another name: make PYTHON=/path/to/python" >&2
		exit 1
	fi
	"$(PYTHON)" -m venv --clear $(@D)
	touch $@

# Changes when a file comes or goes.
.venv/.sources: FORCE | .venv/.created
	@printf '%s\n' $(SOURCES) | cmp --silent - $@ || printf '%s\n' $(SOURCES) >$@

.venv/.installed: $(SOURCES) .venv/.sources
	@echo "Installing into .venv (the first time this takes a minute or two)"
	$(RUN)/pip install -qq '.[demo]'
	$(RUN)/python -I -c 'from proxy.version import build_info; print(build_info())'
	touch $@

# Only what the extra needs is added: the package itself is there.
.venv/.testable: .venv/.installed
	@$(RUN)/pip install -qq 'pgtenant[demo,test]'
	touch $@

.venv-dev/.installed: $(BUILD_FILES) | .venv-dev/.created
	@echo "Installing into .venv-dev (the first time this takes a minute or two)"
	$(DEV)/pip install -qq --editable '.[demo,dev]'
	touch $@
