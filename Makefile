# vsock-fastpath: `make compare` and `make test` do all the set-up on a fresh
# Debian 12 machine (root, or sudo for the packages once).

PYTHON   ?= python3
VENV     := .venv
BIN      := $(VENV)/bin
PYTEST   := $(BIN)/python -m pytest
# Two at a time where there are two CPUs; a file's tests stay together, and share what
# they start. A worker that dies fails the run and ends it: with a new one pytest-xdist 3.8
# waits for ever. Benchmarks take no part in that. WORKERS= runs all one after another.
WORKERS  ?= -n auto --maxprocesses 2 --dist loadfile --max-worker-restart 0 \
            -p no:benchmark
JSON     ?= out/compare.json
HTML     ?= out/compare.html
BENCH    ?= out/bench.json
BENCH_OPTIONS := --benchmark-quiet --benchmark-disable-gc
FUZZ_S   ?= 60
NIGHTLY_FUZZ_S ?= 1800
SOAK     ?= 1000000
CPU_S    ?= 3600
FIRST_SEED ?= 1000
comma    := ,
# Not under sanitizers: the first would measure their memory, the second take it away,
# and the SIGBUS of the third is their own to handle.
MEMORY_TEST := tests/unit/vhost_user/test_vsock_process.py::test_one_idle_vm_takes_less_than_60_mib
SHORT_TEST  := tests/unit/vhost_user/test_command.py::test_out_of_memory_ends_single_connections_and_is_recovered_from
SIGBUS_TEST := tests/unit/vhost_user/test_fault.py::test_a_sigbus_elsewhere_keeps_its_effect
# Not for TSan: two have no engine's thread, the others have other programs say to it what
# the tests beside them say.
ONE_THREAD := $(addprefix --ignore tests/conformance/,test_rng.py test_hbone_envoy.py \
              test_hbone_tools.py) --deselect \
              tests/conformance/test_inflight.py::test_each_chain_comes_back_once_after_a_kill

# What the commands need of the system; `fastpath doctor` checks each one.
PACKAGES := gcc libc6-dev make python3-venv python3-dev ca-certificates \
            qemu-system-x86 busybox-static iproute2 iptables procps clang \
            libclang-rt-dev golang-go libelf-dev libssl-dev libipsec-mb-dev \
            libnghttp2-dev nghttp2-client strace gcc-aarch64-linux-gnu \
            libc6-dev-arm64-cross flex bison bc xz-utils groff-base \
            iputils-ping

NATIVE   := $(wildcard vhost_user/native/*.[ch] vhost_user/native/*/*.[ch] \
            lib/ring/*.[ch]) vhost_user/native/build.py
C_FILES  := $(wildcard vhost_user/native/*.[ch] vhost_user/native/*/*.[ch] \
            lib/ring/*.[ch] lib/ring/examples/*.[ch] \
            guest/*.[ch] guest/*/*.[ch] guest/agent/*/*.[ch] guest/kernel/*/*.[ch] \
            fastpath/datapath/bpf/*.c fastpath/commands/compare/proxy/*.[ch] \
            fastpath/commands/compare/http/*.c \
            tests/vm/*.[ch] tests/vm/*/*.[ch] \
            tests/fuzz/*.[ch] \
            tests/unit/vhost_user/*.[ch] tests/unit/vhost_user/native/*.[ch] \
            tests/unit/lib/*.[ch] \
            bench/guest/*.[ch] bench/host/*.c)

.PHONY: setup packages compare test lint types unit conformance man \
        conformance-doc policy-doc handoff-doc compare-doc bench-doc figures sanitize tsan \
        netns vm vm-nightly random debug-kernel nightly quota-test compat-doc kernels \
        frontends vsock-test fuzz bench bench-short soak image clean

PARTS    := lint types unit conformance netns sanitize tsan image vm fuzz bench-short
RUN_PARTS := $(BIN)/python tests/support/parts.py

compare: setup image
	mkdir -p $(dir $(JSON)) $(dir $(HTML))
	$(BIN)/fastpath compare --json $(JSON) --html $(HTML)

# Each part to its end; the last lines say which failed, and what each took.
test: setup
	MAKE="$(MAKE)" $(RUN_PARTS) $(PARTS)

# What takes too long for each change; before an issue is closed.
nightly: setup
	MAKE="$(MAKE)" $(RUN_PARTS) vm-nightly fuzz FUZZ_S=$(NIGHTLY_FUZZ_S)

# All of CI with a quarter of this machine, as root; it has to end within 80 minutes.
quota-test: setup
	$(BIN)/python tests/support/quota.py --percent 25 --limit 4800 -- \
	  env CI=true bash .ci/run

setup: packages $(VENV)/.stamp

packages:
	@missing=$$(for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' \
	  || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	  if [ -n "$$sudo" ] && ! command -v sudo >/dev/null; then \
	    echo "make: packages missing: run as root: apt-get install" $$missing >&2; \
	    exit 2; fi; \
	  $$sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	  $$sudo apt-get install -q -y --no-install-recommends $$missing; fi

$(VENV)/.stamp: pyproject.toml setup.py $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

image: setup
	$(BIN)/fastpath image build base
	$(BIN)/fastpath image build apps

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	@! grep -nE '^ \*[^ /	]' $(C_FILES) || \
	  { echo "clang-format broke a line of a table: make it shorter" >&2; exit 1; }
	$(BIN)/python tools/layers.py

types: setup
	$(BIN)/mypy

unit: setup
	$(PYTEST) $(WORKERS) tests/unit

conformance: setup
	$(PYTEST) $(WORKERS) tests/conformance

# Manual pages of all programs, from their parsers.
man: setup
	$(BIN)/python -m tools.manual build/man

# docs/conformance.md from the requirements and the tests' marks.
conformance-doc: setup
	$(BIN)/python -m tests.conformance.doc

# The tables of docs/tsi-policy.md, from the code that decides.
policy-doc: setup
	$(BIN)/python -m tests.policy_doc

# The tables of docs/handoffs.md, from a run of all hand-offs.
HANDOFFS := tsi,tsi+pod,tsi+inpod,tsi+socks5,tsi+unix,tsi+ring,tsi+embedded
handoff-doc: setup image
	mkdir -p out
	$(BIN)/fastpath compare --paths $(HANDOFFS) --budget 900 \
	  --json out/handoffs.json --html out/handoffs.html
	$(BIN)/python -m tests.handoff_doc out/handoffs.json

# The tables of README and docs/measurements.md, from a comparison and from the benches.
compare-doc: compare
	$(BIN)/python -m tests.compare_doc $(JSON)

bench-doc: bench
	$(BIN)/python -m tests.bench_doc $(BENCH)

# docs/figures: SVG from Graphviz's language (Debian: graphviz).
figures: $(patsubst %.dot,%.svg,$(wildcard docs/figures/*.dot))

docs/figures/%.svg: docs/figures/%.dot
	dot -Tsvg -o $@ $<

# docs/tsi-compat.md from the table that test_tsi_differential.py goes by.
compat-doc: setup
	$(BIN)/python -m tests.vm.tsi_compat

# A copy of the package with sanitizers in the native module. PYTHONSAFEPATH: else Python
# would find the package in the working directory first.
define sanitized-copy
	rm -rf build/$(1) && mkdir -p build/$(1)
	cp -r pyproject.toml README.md vhost_user lib build/$(1)/
	rm -f build/$(1)/vhost_user/_vu*.so build/$(1)/vhost_user/_maker
	cd build/$(1) && VU_SANITIZE=$(2) ../../$(BIN)/python vhost_user/native/build.py
endef
SANITIZED = PYTHONSAFEPATH=1 VU_PACKAGE=$(CURDIR)/build/$(1) \
            PYTHONPATH=$(CURDIR)/build/$(1) $(PYTEST)

# The same tests on a native module built with ASan and UBSan, in a copy.
sanitize: setup
	$(call sanitized-copy,sanitize,address$(comma)undefined)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(call SANITIZED,sanitize) $(WORKERS) tests/unit/vhost_user tests/conformance \
	  --deselect $(MEMORY_TEST) --deselect $(SHORT_TEST) --deselect $(SIGBUS_TEST)

# And with TSan: the engine thread against Python's. What it saw of a race is in a file
# of its process, be it a worker of pytest's or what a test started.
tsan: setup
	$(call sanitized-copy,tsan,thread)
	status=0; LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
	  TSAN_OPTIONS=exitcode=66:suppressions=tests/tsan.supp:log_path=$(CURDIR)/build/tsan/race \
	  $(call SANITIZED,tsan) $(WORKERS) tests/conformance $(ONE_THREAD) tests/unit/vhost_user/test_netns.py \
	  tests/unit/vhost_user/test_handoffs.py tests/unit/vhost_user/test_handoffs_socks5.py || status=$$?; \
	  cat build/tsan/race.* 2>/dev/null && status=66; exit $$status

netns: setup
	$(PYTEST) tests/netns

vm: setup image
	$(PYTEST) $(WORKERS) tests/vm

# What takes long or needs a large image: servers and clients as Debian has them.
vm-nightly: setup image
	$(PYTEST) tests/vm --nightly -m nightly

# Each kernel that modules of ours are for, and one of our own, which is compiled the first
# time, for 17 minutes of CPU time; docs/kernels.md.
kernels: setup image
	$(PYTEST) tests/vm/test_kernels.py tests/vm/test_tsi_module.py --nightly \
	  --write-kernels docs/kernels.md

# Random sequences of system calls, over TCP and over TSI: CPU_S seconds of each guest.
random: setup image
	$(PYTEST) tests/vm/test_tsi_random.py --nightly -m nightly --cpu-seconds $(CPU_S) \
	  --first-seed $(FIRST_SEED)

# Test files on a kernel of our own with KASAN, lockdep and the rest of tests/vm/debug.config,
# which is compiled the first time, for 22 minutes of CPU time.
DEBUGGED ?= tests/vm/test_tsi_ways.py
debug-kernel: setup image
	FASTPATH_TEST_SCALE=4 $(PYTEST) $(DEBUGGED) -k "not 6.12" \
	  --kernel-config tests/vm/debug.config

frontends: setup image
	$(PYTEST) tests/vm/test_frontends.py --write-frontends docs/frontends.md

vsock-test: setup image
	$(PYTEST) tests/vm/test_linux_vsock.py --write-vsock-test docs/vsock-test.md

# FUZZ_S seconds, divided among the harnesses.
fuzz: setup
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_S)

# Ours beside Debian's vhost-device-vsock, which is downloaded the first time.
bench: setup image
	mkdir -p $(dir $(BENCH))
	$(PYTEST) bench $(BENCH_OPTIONS) --benchmark-json $(BENCH:.json=-pytest.json) \
	  --out $(BENCH)

# The same in short; fails when a size or a count of bench/baseline.json is lost, and on a
# quiet machine when a timing is.
bench-short: setup image
	$(PYTEST) bench $(BENCH_OPTIONS) --short

# 1,000,000 short connections through one guest; for hours where KVM is missing.
soak: setup image
	$(BIN)/python -m bench.soak_tsi --count $(SOAK) --sockets module
	$(BIN)/python -m bench.soak_tsi --count $(SOAK) --sockets agent

clean:
	rm -rf build out $(VENV) vhost_user/_vu*.so vhost_user/_vu.c vhost_user/_maker *.egg-info
