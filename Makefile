# meshd: `make demo` and `make test` are the two commands; both install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
PY := $(VENV)/bin/python
APT_PACKAGES := python3 python3-venv nftables iproute2 util-linux iputils-ping dnsutils curl tcpdump conntrack busybox-static procps

# What the tests compare with or run inside, besides: real Serf, etcd, Docker, other resolvers, a kernel with IPVS.
APT_TEST_PACKAGES := serf etcd-server etcd-client openssl musl-tools mount dnsperf iperf3 docker.io \
	qemu-system-x86 kmod cpio ipvsadm wireguard-go python3-cryptography gcc haproxy iptables nghttp2-client \
	nmap testssl.sh docker-registry docker-compose systemd

PREFIX := /opt/meshd

.PHONY: demo test test-hosts test-parts test-vm test-others sim check proto lock install clean

$(VENV)/.ready: requirements.lock pyproject.toml Makefile
	@if ! dpkg -s $(APT_PACKAGES) >/dev/null 2>&1; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(APT_PACKAGES); fi
	@/usr/bin/python3 -c "import sys; sys.exit(sys.version_info < (3, 11) and 'meshd needs Python 3.11 or newer')"
	/usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --require-hashes --no-deps -r requirements.lock
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.ready ## the main job, end to end, on this machine
	$(VENV)/bin/mesh lab demo

$(VENV)/.tools: $(VENV)/.ready
	@if ! dpkg -s $(APT_TEST_PACKAGES) >/dev/null 2>&1; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(APT_TEST_PACKAGES); fi
	touch $@

# Two at a time, the longest first: tests of whole clusters mostly wait for clocks, so the parts go beside them, then the
# virtual machine and what deals with others. Only whole lines are printed, so that two at a time can be read.
BY_LINE := | grep --text --line-buffered ""

test: $(VENV)/.tools ## all tests, those on the real kernel and on a kernel with IPVS included
	$(MAKE) --no-print-directory --keep-going --jobs=2 test-hosts test-parts test-vm test-others

test-hosts: $(VENV)/.tools ## whole clusters of several hosts
	$(VENV)/bin/pytest tests/e2e $(BY_LINE)

test-parts: $(VENV)/.tools ## everything else that runs on this machine's own kernel
	$(VENV)/bin/pytest --ignore=tests/e2e --ignore=tests/interop --ignore=tests/security $(BY_LINE)

test-vm: $(VENV)/.tools ## the data plane on a kernel with IPVS, in a virtual machine
	$(PY) tests/vm/run.py $(BY_LINE)

test-others: $(VENV)/.tools ## clusters with real Serf in them, and whoever attacks a node
	$(VENV)/bin/pytest tests/interop tests/security $(BY_LINE)

SEEDS ?= 1-2000
sim: $(VENV)/.ready ## whole clusters of managers in virtual time: make sim SEEDS=1-200000
	$(PY) tests/sim/raft/run.py --seeds $(SEEDS)

check: $(VENV)/.ready ## lint, types, layers, generated code
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(MAKE) proto && git diff --exit-code -- control/rpc control/etcd

proto: $(VENV)/.ready ## generate code from control/rpc/*.proto
	$(PY) -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
		--plugin=protoc-gen-mypy=$(VENV)/bin/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(VENV)/bin/protoc-gen-mypy_grpc \
		control/rpc/control.proto
	$(PY) -m grpc_tools.protoc -I . --python_out=. --mypy_out=quiet:. \
		--plugin=protoc-gen-mypy=$(VENV)/bin/protoc-gen-mypy control/etcd/etcd.proto

install: ## the product in a virtual environment of its own under /opt/meshd, with its systemd unit
	@if ! dpkg -s $(APT_PACKAGES) >/dev/null 2>&1; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(APT_PACKAGES); fi
	/usr/bin/python3 -m venv $(PREFIX)
	$(PREFIX)/bin/pip install -q --require-hashes --no-deps -r requirements-run.lock
	$(PREFIX)/bin/pip install -q --no-deps .
	install -D -m 644 README.md $(PREFIX)/README.md
	ln -sf $(PREFIX)/bin/mesh $(PREFIX)/bin/meshd /usr/local/bin/
	install -D -m 644 -t /etc/systemd/system mesh/daemon/meshd.service mesh/daemon/meshd-docker.socket
	@echo "now: systemctl enable --now meshd-docker.socket meshd"

clean: ## remove what make made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

COMPILE := uv pip compile -q pyproject.toml --universal --generate-hashes --no-header --no-emit-find-links \
	--no-emit-index-url

lock: ## pin what pyproject.toml asks for: versions and hashes; no registry is named
	$(COMPILE) --group dev -o requirements.lock
	$(COMPILE) -o requirements-run.lock
