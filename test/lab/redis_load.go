package lab

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// RedisLoad sets keys and counts up counters.
type RedisLoad struct {
	*Load
	run string
}

// key is the name of an entry's key.
func (l *RedisLoad) key(e entry) string { return fmt.Sprintf("%s:key:%d:%d", l.run, e.worker, e.seq) }

// counter is the name of a worker's counter.
func (l *RedisLoad) counter(worker int) string { return fmt.Sprintf("%s:counter:%d", l.run, worker) }

// StartLoad starts workers that write and remember what was acknowledged: every
// third write of each counts up its counter, the others set a key.
func (r *Redis) StartLoad(ctx context.Context, run string, workers int) (*RedisLoad, error) {
	client := r.Client()
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("reach Redis: %w", err), client.Close())
	}
	if err := client.Close(); err != nil {
		return nil, fmt.Errorf("close a connection: %w", err)
	}
	l := &RedisLoad{run: run}
	clients := make([]*redis.Client, workers)
	for w := range clients {
		clients[w] = r.Client()
	}
	step := func(ctx context.Context, ledger *ledger, w int) error {
		e := ledger.attempt(w)
		var err error
		if isCount(e) {
			err = clients[w].Incr(ctx, l.counter(w)).Err()
		} else {
			err = clients[w].Set(ctx, l.key(e), payload(run, e), 0).Err()
		}
		if err != nil {
			return fmt.Errorf("write to Redis: %w", err)
		}
		ledger.ack(e)
		return nil
	}
	// Closing can only fail for a connection that is gone already.
	l.Load = startLoad(ctx, workers, step, func(w int) { _ = clients[w].Close() })
	return l, nil
}

// isCount says whether an entry is an INCR.
func isCount(e entry) bool { return e.seq%3 == 0 }

// Verify looks for every acknowledged write in a server, which may be another
// one than the load wrote to.
func (l *RedisLoad) Verify(ctx context.Context, r *Redis) (Report, error) {
	if err := l.stopped(); err != nil {
		return Report{}, err
	}
	client := r.Client()
	defer func() { _ = client.Close() }() // only reads were made
	found := make(map[entry]bool)
	if err := l.findKeys(ctx, client, found); err != nil {
		return Report{}, err
	}
	var report Report
	excess := make(map[int]int)
	for w := range l.ledger.attempted {
		value, err := client.Get(ctx, l.counter(w)).Int()
		if err != nil && !errors.Is(err, redis.Nil) {
			return Report{}, fmt.Errorf("read a counter: %w", err)
		}
		if more := l.countFound(w, value, found); more != 0 {
			excess[w] = more
		}
	}
	report = l.ledger.compare("Redis writes", found)
	for w, more := range excess {
		report.problem("counter of worker %d is %d too high", w, more)
	}
	return report, nil
}

// countFound turns the value of a counter into entries: an acknowledged INCR is
// there when the counter is high enough for it. It returns by how much the
// counter is higher than the load can have made it.
func (l *RedisLoad) countFound(worker, value int, found map[entry]bool) int {
	var acked, unknown []entry
	for seq := 3; seq <= l.ledger.attempted[worker]; seq += 3 {
		e := entry{worker, seq}
		if l.ledger.isAcked(e) {
			acked = append(acked, e)
		} else {
			unknown = append(unknown, e)
		}
	}
	// INCRs do not say whose they are: the acknowledged ones come first.
	for _, e := range append(acked, unknown...) {
		if value == 0 {
			return 0
		}
		value--
		found[e] = true
	}
	return value
}

// findKeys reads every key of the load and compares its value.
func (l *RedisLoad) findKeys(ctx context.Context, client *redis.Client, found map[entry]bool) error {
	var cursor uint64
	// Each round asks for 1000 slots; the bound only guards against a server
	// whose cursor never comes home.
	for range 100_000 {
		keys, next, err := client.Scan(ctx, cursor, l.run+":key:*", 1000).Result()
		if err != nil {
			return fmt.Errorf("list the load's keys: %w", err)
		}
		if len(keys) > 0 {
			values, err := client.MGet(ctx, keys...).Result()
			if err != nil {
				return fmt.Errorf("read the load's keys: %w", err)
			}
			for i, key := range keys {
				e, err := l.parseKey(key)
				if err != nil {
					return err
				}
				found[e] = values[i] == payload(l.run, e)
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
	return errors.New("the list of the load's keys has no end")
}

// parseKey finds the entry of a key.
func (l *RedisLoad) parseKey(key string) (entry, error) {
	var e entry
	if _, err := fmt.Sscanf(key[len(l.run):], ":key:%d:%d", &e.worker, &e.seq); err != nil {
		return entry{}, fmt.Errorf("key %s: %w", strconv.Quote(key), err)
	}
	return e, nil
}
