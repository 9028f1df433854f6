# meshd: `make demo` and `make test` are the two commands; both install what they need.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
APT_PACKAGES := python3 python3-venv nftables iproute2 util-linux iputils-ping dnsutils curl tcpdump conntrack busybox-static

.PHONY: demo test check proto lock install clean

$(VENV)/.ready: requirements.lock pyproject.toml Makefile
	@if ! dpkg -s $(APT_PACKAGES) >/dev/null 2>&1; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(APT_PACKAGES); fi
	/usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --require-hashes --no-deps -r requirements.lock
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e . 
	touch $@

demo: $(VENV)/.ready ## the main job, end to end, on this machine
	$(VENV)/bin/mesh lab demo

test: $(VENV)/.ready ## all tests, those on the real kernel included
	$(VENV)/bin/pytest

check: $(VENV)/.ready ## lint, types, layers, generated code
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(MAKE) proto && git diff --exit-code -- control/rpc

proto: $(VENV)/.ready ## generate code from control/rpc/*.proto
	$(PY) -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
		--plugin=protoc-gen-mypy=$(VENV)/bin/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(VENV)/bin/protoc-gen-mypy_grpc \
		control/rpc/control.proto

lock: ## pin what pyproject.toml asks for (versions and hashes; no registry is named)
	uv pip compile -q pyproject.toml --group dev --universal --generate-hashes --no-header \
		--no-emit-find-links --no-emit-index-url -o requirements.lock
