# The tasks of this project. "make" lists them. What takes more than a line is
# in scripts/.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=

# Where make install puts what.
BINDIR        ?= $(PREFIX)/bin
UNITDIR       ?= $(PREFIX)/lib/systemd/system
COMPLETIONDIR ?= $(PREFIX)/share/bash-completion/completions
DOCDIR        ?= $(PREFIX)/share/doc/replfs
# Scripts for other programs.
LIBDIR        ?= $(PREFIX)/lib/replfs

# Which build this is. Without git, or in a copy of the sources, it is left open.
GIT     := $(if $(wildcard .git),git -c safe.directory='$(CURDIR)')
VERSION ?= $(if $(GIT),$(shell $(GIT) describe --tags --match 'v[0-9]*' --dirty 2>/dev/null))
COMMIT  ?= $(if $(GIT),$(shell $(GIT) describe --always --exclude '*' --abbrev=12 --dirty 2>/dev/null))
DATE    ?= $(if $(GIT),$(shell $(GIT) log -1 --format=%cI 2>/dev/null))

PKG     := github.com/replfs/replfs/internal/version
LDFLAGS := -s -w -X $(PKG).Version=$(VERSION) -X $(PKG).Commit=$(COMMIT) -X $(PKG).Date=$(DATE)

BIN := bin/replfs

# The scripts use the same go.
export GO

# How long each fuzz target runs, in seconds.
FUZZ_SECONDS      ?= 10
FUZZ_LONG_SECONDS ?= 60
# More flags for go test, such as TESTFLAGS='-run TestRename -v'.
export TESTFLAGS ?=
# More flags for replfs bench fs or replication, such as BENCHFLAGS='--dir /var/tmp --rounds 3'.
BENCHFLAGS ?=
# For the Go benchmarks: which, how long, how often.
BENCH     ?= .
BENCHTIME ?= 1s
BENCHRUNS ?= 1

.PHONY: help
help: ## Show this list
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/replfs, one static binary
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/replfs

.PHONY: deps
deps: ## Install the Debian packages that the tests and the demo use, where missing
	@scripts/deps test

.PHONY: test
test: deps build ## Run all tests but the long ones; needs root and FUSE, installs what it needs
	@REPLFS_BIN='$(abspath $(BIN))' scripts/test

.PHONY: test-long
test-long: deps build ## Run all tests, the long ones too, and every fuzz target
	@REPLFS_BIN='$(abspath $(BIN))' REPLFS_LONG=1 scripts/test
	@scripts/fuzz $(FUZZ_LONG_SECONDS)

.PHONY: fuzz
fuzz: ## Run every fuzz target, FUZZ_SECONDS each (default 10)
	@scripts/fuzz $(FUZZ_SECONDS)

.PHONY: bench
bench: deps build ## Compare the mount with the bare store and other FUSE file systems; BENCHFLAGS
	$(BIN) bench fs $(BENCHFLAGS)

.PHONY: bench-replication
bench-replication: build ## Measure replication between two nodes on this machine; BENCHFLAGS
	$(BIN) bench replication $(BENCHFLAGS)

.PHONY: bench-go
bench-go: ## Run the Go benchmarks of the packages; BENCH, BENCHTIME and BENCHRUNS choose
	@scripts/bench -bench='$(BENCH)' -benchtime=$(BENCHTIME) -count=$(BENCHRUNS)

.PHONY: demo
demo: deps build ## Show what replfs does: two nodes, databases, a kill -9, the proof
	$(GO) run -buildvcs=false ./test/demo -bin $(BIN)

.PHONY: lint
lint: ## Check the format, go vet and golangci-lint (installed in .tools if missing)
	@scripts/lint

.PHONY: fmt
fmt: ## Format the Go files
	gofmt -w $$(find . -name '*.go' -not -path './.*')

.PHONY: generate
generate: ## Generate the Go code of the protocol (installs protoc if missing)
	@scripts/deps generate
	@scripts/generate

.PHONY: check-generated
check-generated: ## Fail if the generated code is not what make generate makes
	@scripts/deps generate
	@scripts/generate --check

.PHONY: install
install: build ## Install the binary, unit, completion and an example config (PREFIX, DESTDIR)
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(COMPLETIONDIR)' '$(DESTDIR)$(DOCDIR)'
	install -m 0755 $(BIN) '$(DESTDIR)$(BINDIR)/replfs'
	sed 's|/usr/bin/replfs|$(BINDIR)/replfs|' packaging/systemd/replfs.service >'$(DESTDIR)$(UNITDIR)/replfs.service'
	chmod 0644 '$(DESTDIR)$(UNITDIR)/replfs.service'
	$(BIN) completion bash >'$(DESTDIR)$(COMPLETIONDIR)/replfs'
	chmod 0644 '$(DESTDIR)$(COMPLETIONDIR)/replfs'
	$(BIN) init -o - >'$(DESTDIR)$(DOCDIR)/replfs.yaml.example'
	chmod 0644 '$(DESTDIR)$(DOCDIR)/replfs.yaml.example'
	install -m 0644 packaging/systemd/gitlab-runsvdir.service.d/replfs.conf '$(DESTDIR)$(DOCDIR)/gitlab-runsvdir.conf.example'
	install -d '$(DESTDIR)$(LIBDIR)'
	install -m 0755 packaging/keepalived/replfs-notify packaging/keepalived/replfs-check '$(DESTDIR)$(LIBDIR)/'
	sed 's|/usr/lib/replfs|$(LIBDIR)|' packaging/keepalived/keepalived.conf.example >'$(DESTDIR)$(DOCDIR)/keepalived.conf.example'
	chmod 0644 '$(DESTDIR)$(DOCDIR)/keepalived.conf.example'
	install -m 0644 LICENSE '$(DESTDIR)$(DOCDIR)/LICENSE'

.PHONY: clean
clean: ## Remove what make has built
	rm -rf bin .tools
