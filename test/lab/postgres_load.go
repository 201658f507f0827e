package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// payload is the content of an entry: anyone who knows the entry can tell
// whether what was found is right.
func payload(run string, e entry) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d/%d", run, e.worker, e.seq))
	return strings.Repeat(hex.EncodeToString(sum[:]), 4)
}

// PostgresLoad inserts rows, one transaction each.
type PostgresLoad struct {
	*Load
	run string
}

// StartLoad starts workers that insert numbered rows and remember which commits
// were acknowledged. The name run keeps the rows of several loads apart.
func (p *Postgres) StartLoad(ctx context.Context, run string, workers int) (*PostgresLoad, error) {
	conn, err := p.Connect(ctx)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS ledger (
		run text, worker int, seq int, payload text NOT NULL, PRIMARY KEY (run, worker, seq))`)
	if err != nil {
		return nil, fmt.Errorf("make the table of the load: %w", err)
	}
	if err := conn.Close(ctx); err != nil {
		return nil, fmt.Errorf("close a connection: %w", err)
	}
	conns := make([]*pgx.Conn, workers)
	step := func(ctx context.Context, ledger *ledger, w int) (err error) {
		if conns[w] == nil || conns[w].IsClosed() {
			if conns[w], err = p.Connect(ctx); err != nil {
				return err
			}
		}
		e := ledger.attempt(w)
		if _, err := conns[w].Exec(ctx, "INSERT INTO ledger VALUES ($1, $2, $3, $4)",
			run, e.worker, e.seq, payload(run, e)); err != nil {
			return fmt.Errorf("insert: %w", err)
		}
		ledger.ack(e)
		return nil
	}
	done := func(w int) {
		if conns[w] != nil {
			// The load's context has ended; the server drops what is left.
			ctx, cancel := context.WithTimeout(context.Background(), killLimit)
			defer cancel()
			_ = conns[w].Close(ctx)
		}
	}
	return &PostgresLoad{Load: startLoad(ctx, workers, step, done), run: run}, nil
}

// Verify looks for every acknowledged row in a server, which may be another one
// than the load wrote to.
func (l *PostgresLoad) Verify(ctx context.Context, p *Postgres) (Report, error) {
	if err := l.stopped(); err != nil {
		return Report{}, err
	}
	conn, err := p.Connect(ctx)
	if err != nil {
		return Report{}, err
	}
	// The rows are read; nothing depends on how the connection ends.
	defer func() { _ = conn.Close(ctx) }()
	// No index: what counts is the table itself; pg_amcheck compares the two.
	if _, err := conn.Exec(ctx, "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off"); err != nil {
		return Report{}, fmt.Errorf("read the load's rows: %w", err)
	}
	rows, err := conn.Query(ctx, "SELECT worker, seq, payload FROM ledger WHERE run = $1", l.run)
	if err != nil {
		return Report{}, fmt.Errorf("read the load's rows: %w", err)
	}
	found := make(map[entry]bool)
	var e entry
	var content string
	_, err = pgx.ForEachRow(rows, []any{&e.worker, &e.seq, &content}, func() error {
		found[e] = content == payload(l.run, e)
		return nil
	})
	if err != nil {
		return Report{}, fmt.Errorf("read the load's rows: %w", err)
	}
	return l.ledger.compare("PostgreSQL rows", found), nil
}
