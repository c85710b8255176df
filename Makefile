# The everyday commands. `make up` and `make test` need Go, and Python 3 with pip;
# `make test` needs Node.js with npm, curl and openssl, too; `make race` a C compiler.
.DEFAULT_GOAL := build
.PHONY: build up down test race bench bench-listener bench-scaler bench-xds bench-functions bench-storms bench-kills soak sim vet lint gen gen-check breaking baseline vuln fuzz clean tools FORCE

GO ?= go
# No C compiler is needed, and the same source gives the same binary. The flags
# are the same for all, so that nothing is compiled twice.
export CGO_ENABLED ?= 0
export GOFLAGS := $(shell $(GO) env GOFLAGS) -trimpath

TOOLS  := envoy lambda framework framework-node redis jaeger etcd
# Flags of `penstock up`: make up ARGS='--gateway-listen 127.0.0.1:9080'
ARGS   ?=
# Flags of `go test`: make test TESTFLAGS='-v -run Limit' PKG=./ratelimit/...
TESTFLAGS ?=
PKG       ?= ./...

build: bin/penstock

# The Go tool knows best whether it is up to date. Without symbols for a debugger
# linking takes half the time, and the binary a third less; stack traces are whole.
bin/penstock: FORCE
	$(GO) build -ldflags "-s -w" -o $@ ./cmd/penstock

FORCE:

# Run everything on this machine with the example (penstock.yaml), until Ctrl-C. What
# runs first is small: it checks the ports and builds the rest while Envoy is fetched.
up:
	@test -x bin/penstock || echo "Penstock: the first start compiles everything, two to five minutes on two cores; the next ones take seconds."
	@$(GO) build -o bin/first-start ./internal/firststart
	@exec bin/first-start $(ARGS)

down: build
	bin/penstock down

# The real servers that tests run against: pinned, cached in .tools/.
tools:
	$(GO) run ./internal/toolbox/cmd/install $(TOOLS)

test: tools
	$(GO) test $(TESTFLAGS) $(PKG)

# All tests of what runs in this process, under the race detector, which needs a C
# compiler; .ci/race-exceptions says what is left out, and why.
race: tools
	@command -v $${CC:-gcc} >/dev/null || { echo "make race needs a C compiler (Debian and Ubuntu: apt-get install gcc)" >&2; exit 1; }
	CGO_ENABLED=1 $(GO) test -race -timeout 20m $(TESTFLAGS) $$($(GO) list ./... | grep -vxF "$$(sed -n 's,^\([^# ][^ ]*\) .*,github.com/penstock-gateway/penstock/\1,p' .ci/race-exceptions)")

# Prints the figures of the main job and writes bench/results/main.json.
bench: build tools
	$(GO) run ./bench/desk -bin bin/penstock -out bench/results/main.json

# One change beside the bare limit and a snapshot cache; bench/results/xds.json.
bench-xds: build tools
	$(GO) run ./bench/xds -out bench/results/xds.json

# What a listening socket that nobody shares costs; bench/results/listener.json.
bench-listener: tools
	$(GO) run ./bench/listener -out bench/results/listener.json

# Functions: warm, cold, churn, a thousand of them; bench/results/functions.json.
bench-functions: build tools bench-scaler
	$(GO) run ./bench/functions -bin bin/penstock -out bench/results/functions.json

# Kills and stops under load; bench/results/storms.json.
bench-storms: tools
	PENSTOCK_STORMS=$(CURDIR)/bench/results/storms.json $(GO) test -count=1 -timeout 60m -run TestStorms -v ./internal/soak

# kill -9 of the control plane, 60 times under three writers; bench/results/kills.json.
bench-kills:
	PENSTOCK_KILL_ROUNDS=60 PENSTOCK_KILLS=$(CURDIR)/bench/results/kills.json $(GO) test -count=1 -timeout 30m -run TestControlKills -v ./cmd/penstock

# The scalers in simulated time, ours and Knative's; bench/results/scaler.json.
bench-scaler:
	$(GO) run ./bench/scaler -out bench/results/scaler.json

# The long forms of what `make test` runs short.
SEEDS ?= 100000
soak: tools
	PENSTOCK_SOAK=1 $(GO) test -count=1 -timeout 120m -v ./internal/soak
	PENSTOCK_EXPLAIN=$(or $(SEED),1):2000 $(GO) test -count=1 -timeout 60m -run 'TestExplain$$' -v ./xds/compile
	PENSTOCK_KILL_ROUNDS=500 $(GO) test -count=1 -timeout 60m -run Kill -v ./store
sim:
	$(GO) test -count=1 -timeout 60m -run Simulation ./xds/ledger -seeds $(SEEDS)

vet:
	$(GO) vet ./...
	@unformatted=$$(gofmt -l authn bench cmd examples functions gateway gen internal ratelimit scale store telemetry tools xds); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi

# buf, by its pinned npm package.
BUF := .tools/buf/node_modules/.bin/buf
$(BUF): tools/buf/package.json tools/buf/package-lock.json
	mkdir -p .tools/buf
	cp $^ .tools/buf/
	npm ci --prefix .tools/buf --no-audit --no-fund --loglevel=error
	touch $@

# Regenerates gen/ from proto/; commit both together.
gen: $(BUF)
	$(BUF) generate

# golangci-lint, built from tools/lint; .golangci.yml says what it looks for.
LINT := .tools/lint/golangci-lint
$(LINT): tools/lint/go.mod tools/lint/go.sum
	$(GO) build -C tools/lint -ldflags "-s -w" -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	touch $@

lint: vet $(BUF) $(LINT)
	$(LINT) run
	$(BUF) lint
	$(MAKE) --no-print-directory breaking

# That clients of an older release can go on: compares the API with proto/baseline.binpb.gz,
# which `make baseline` writes when a release is made, or when a break is decided on.
breaking: $(BUF)
	$(BUF) build proto --exclude-source-info -o .tools/buf/api.binpb
	$(BUF) breaking .tools/buf/api.binpb --against proto/baseline.binpb.gz --config '{"version":"v2","breaking":{"use":["WIRE_JSON"]}}'

baseline: $(BUF)
	$(BUF) build proto --exclude-source-info -o proto/baseline.binpb.gz

# That what is generated is what `make gen` generates.
gen-check: gen
	@if ! git diff --exit-code --stat -- gen; then echo "gen/ is not what proto/ says: run make gen and commit both" >&2; exit 1; fi

# Known vulnerabilities in what the code calls. The database is a module of tools/vuln, as
# govulncheck is, so that it comes from the module proxy; update both to know newer ones.
# Those of Go itself are printed, and no error: another Go mends them.
VULN := .tools/vuln
vuln:
	mkdir -p $(VULN)
	$(GO) -C tools/vuln mod download golang.org/x/vulndb
	$(GO) -C tools/vuln build -ldflags "-s -w" -o $(CURDIR)/$(VULN)/ . golang.org/x/vuln/cmd/govulncheck golang.org/x/vulndb/cmd/indexdb
	rm -rf $(VULN)/db
	$(VULN)/indexdb -out $(VULN)/db -vulns "$$($(GO) -C tools/vuln list -m -f '{{.Dir}}' golang.org/x/vulndb)/data/osv"
	$(VULN)/govulncheck -format json -db "file://$(CURDIR)/$(VULN)/db" ./... > $(VULN)/found.json
	$(GO) -C tools/vuln test .
	$(VULN)/vuln < $(VULN)/found.json

# Every fuzz target for a while, one after the other: make fuzz FUZZTIME=10m PKG=./gateway/...
# What is found is kept in the package's testdata/fuzz, where `make test` tries it again.
FUZZTIME ?= 60s
fuzz:
	@for p in $$($(GO) list -f '{{.Dir}}' $(PKG)); do \
		for f in $$(grep -hos '^func Fuzz[A-Za-z0-9_]*' $$p/*_test.go | cut -c6-); do \
			echo "== $$p $$f"; (cd $$p && $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) .) || exit 1; \
		done; \
	done

# Keeps the installed tools; .tools/ may be removed by hand.
clean:
	rm -rf bin .penstock
