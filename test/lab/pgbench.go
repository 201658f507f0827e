package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// PgbenchInit fills the tables of pgbench.
func (p *Postgres) PgbenchInit(ctx context.Context, scale int) error {
	_, err := p.client(ctx, "pgbench", "-i", "-q", "-s", strconv.Itoa(scale), "postgres")
	return err
}

// Pgbench is a running TPC-B load.
type Pgbench struct {
	process *Process
	clients int
}

// StartPgbench starts pgbench's TPC-B load for a time. It ends sooner when the
// server dies.
func (p *Postgres) StartPgbench(clients int, duration time.Duration, log string) (*Pgbench, error) {
	seconds := max(1, int(duration.Seconds()))
	args := append(p.connection(), "-n", "-c", strconv.Itoa(clients), "-T", strconv.Itoa(seconds), "postgres")
	process, err := StartProcess(Command{
		Name: "pgbench", Path: filepath.Join(p.bin, "pgbench"), Args: args,
		User: postgresUser, Namespace: p.cfg.Namespace, Isolated: true,
	}, log)
	if err != nil {
		return nil, err
	}
	return &Pgbench{process: process, clients: clients}, nil
}

// Kill ends pgbench at once; it then cannot say what was acknowledged.
func (b *Pgbench) Kill() error { return b.process.Kill() }

// processedLine is where pgbench says how many commits it has seen.
var processedLine = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)

// Acked waits for the end of pgbench and returns how many transactions were
// acknowledged to it. A server that died under it is no error.
func (b *Pgbench) Acked(limit time.Duration) (int, error) {
	code, err := b.process.Wait(limit)
	if err != nil {
		return 0, err
	}
	const aborted = 2 // clients lost their server
	if code != 0 && code != aborted {
		return 0, fmt.Errorf("pgbench ended with exit code %d:\n%s", code, b.process.Tail(15))
	}
	lines := processedLine.FindAllStringSubmatch(b.process.Tail(200), -1)
	if len(lines) == 0 {
		return 0, fmt.Errorf("pgbench did not say what it has done:\n%s", b.process.Tail(15))
	}
	n, err := strconv.Atoi(lines[len(lines)-1][1])
	if err != nil {
		return 0, fmt.Errorf("pgbench's count: %w", err)
	}
	return n, nil
}

// VerifyPgbench checks what TPC-B promises: each transaction moved the same
// amount in an account, a teller, a branch and the history. acked is the number
// of transactions acknowledged to a number of clients since PgbenchInit; each
// client may have had one more in flight.
func (p *Postgres) VerifyPgbench(ctx context.Context, acked, clients int) (Report, error) {
	conn, err := p.Connect(ctx)
	if err != nil {
		return Report{}, err
	}
	// The sums are read; nothing depends on how the connection ends.
	defer func() { _ = conn.Close(ctx) }()
	var history int
	var accounts, tellers, branches, deltas int64
	err = conn.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM pgbench_history),
		(SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts),
		(SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers),
		(SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches),
		(SELECT coalesce(sum(delta), 0) FROM pgbench_history)`).
		Scan(&history, &accounts, &tellers, &branches, &deltas)
	if err != nil {
		return Report{}, fmt.Errorf("read pgbench's tables: %w", err)
	}
	r := Report{What: "pgbench transactions", Acked: acked, Found: min(history, acked), Unacked: max(0, history-acked)}
	if r.Unacked > clients {
		r.problem("%d transactions more than were acknowledged, of %d clients", r.Unacked, clients)
	}
	if accounts != deltas || tellers != deltas || branches != deltas {
		r.problem("the sums differ: accounts %d, tellers %d, branches %d, history %d", accounts, tellers, branches, deltas)
	}
	return r, nil
}

// Clients is the number of connections of the load.
func (b *Pgbench) Clients() int { return b.clients }
