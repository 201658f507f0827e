package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const streamChunk = 1 << 20

// streaming measures one large file three ways: written to the mount until the
// standby has all of it, records of the same size from a log to a store in one
// process, and raw gRPC streaming with a pwrite. The order changes with each
// round.
func (r *replBencher) streaming(ctx context.Context, round int) error {
	size := int64(r.n(256)) << 20
	var mount, log, raw float64
	steps := []func() error{
		func() (err error) { mount, err = r.streamMount(ctx, round, size); return err },
		func() (err error) { log, err = r.streamLog(ctx, size); return err },
		func() (err error) {
			raw, err = rawStream(ctx, r.site.path(fmt.Sprintf("raw-%d", round)), size)
			return err
		},
	}
	for i := range steps {
		if err := steps[(i+round)%len(steps)](); err != nil {
			return err
		}
	}
	r.add("stream", "raw gRPC + pwrite", "MB/s", raw)
	r.add("stream", "log to store", "MB/s", log)
	r.add("stream", "log to store / raw", "", log/raw)
	r.add("stream", "mount to store", "MB/s", mount)
	r.add("stream", "mount to store / raw", "", mount/raw)
	return nil
}

func (r *replBencher) streamMount(ctx context.Context, round int, size int64) (speed float64, err error) {
	c, err := r.cluster(ctx, "async")
	if err != nil {
		return 0, err
	}
	if err := c.settle(ctx); err != nil {
		return 0, err
	}
	name := fmt.Sprintf("stream-%d", round)
	before, err := r.network(ctx, c)
	if err != nil {
		return 0, err
	}
	f, err := fresh(filepath.Join(c.dir, name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := incompressible(streamChunk)
	begun := time.Now()
	for off := int64(0); off < size; off += streamChunk {
		if _, err := f.WriteAt(buf, off); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	written := time.Since(begun)
	if err := awaitSize(ctx, filepath.Join(r.standbyStore("async"), name), size); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	after, err := r.network(ctx, c)
	if err != nil {
		return 0, err
	}
	r.add("stream", "write(2) on the mount", "MB/s", rate(size, written))
	r.add("stream", "network bytes / payload", "", float64(after-before)/float64(size))
	if err := os.Remove(filepath.Join(c.dir, name)); err != nil {
		return 0, fmt.Errorf("remove the file: %w", err)
	}
	return rate(size, took), c.settle(ctx)
}

func rate(bytes int64, took time.Duration) float64 { return float64(bytes) / took.Seconds() / 1e6 }

// awaitSize waits until a file of the standby's store has its size.
func awaitSize(ctx context.Context, path string, size int64) error {
	deadline := time.Now().Add(hangLimit)
	for {
		st, err := os.Stat(path)
		switch {
		case err == nil && st.Size() >= size:
			return nil
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("look at the standby's store: %w", err)
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not come to the standby", path)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}

// network is how many bytes the connections between primary and standby have
// carried, both ways, by what the kernel says of their sockets.
func (r *replBencher) network(ctx context.Context, c *running) (uint64, error) {
	st, err := c.control.Status(ctx)
	if err != nil {
		return 0, err
	}
	var total uint64
	for _, p := range st.Peers {
		_, port, err := net.SplitHostPort(p.Address)
		if err != nil {
			return 0, fmt.Errorf("address of the standby: %w", err)
		}
		socks, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
		if err != nil {
			return 0, fmt.Errorf("ask for the sockets: %w", err)
		}
		for _, s := range socks {
			if s.InetDiagMsg != nil && s.TCPInfo != nil && strconv.Itoa(int(s.InetDiagMsg.ID.DestinationPort)) == port {
				total += s.TCPInfo.Bytes_acked + s.TCPInfo.Bytes_received
			}
		}
	}
	if total == 0 {
		return 0, errors.New("found no connection between primary and standby")
	}
	return total, nil
}

func (r *replBencher) streamLog(ctx context.Context, size int64) (float64, error) {
	const record = 1 << 20
	res, err := r.pipeline(ctx, int(size/record), record, 1, true)
	if err != nil {
		return 0, err
	}
	return float64(size) / res.Seconds / 1e6, nil
}

// pipelineResult is what `replfs bench pipeline` prints.
type pipelineResult struct {
	Records int     `json:"records"`
	Seconds float64 `json:"seconds"`
}

// pipeline runs `replfs bench pipeline`, a process of its own.
func (r *replBencher) pipeline(ctx context.Context, records, size, files int, tcp bool) (*pipelineResult, error) {
	c := command{name: r.opt.Binary, args: []string{
		"bench", "pipeline", "--dir", r.site.dir, "--records", strconv.Itoa(records), "--size", strconv.Itoa(size),
		"--files", strconv.Itoa(files), "--tcp=" + strconv.FormatBool(tcp),
	}}
	out, err := c.run(ctx)
	if err != nil {
		return nil, err
	}
	res := &pipelineResult{}
	if err := json.Unmarshal([]byte(out), res); err != nil || res.Seconds <= 0 {
		return nil, fmt.Errorf("replfs bench pipeline printed %q: %w", lastLines(out, 5), err)
	}
	return res, nil
}

// records measures small ones.
func (r *replBencher) records(ctx context.Context, round int) error {
	const size, files = 1 << 10, 200
	for _, tcp := range []bool{false, true} {
		res, err := r.pipeline(ctx, r.n(300_000), size, files, tcp)
		if err != nil {
			return err
		}
		name := "memory to memory"
		if tcp {
			name = "over the loopback interface"
		}
		r.add("records", name, "records/s", float64(res.Records)/res.Seconds)
	}
	speed, err := r.recordsMount(ctx, round, size, files)
	if err != nil {
		return err
	}
	r.add("records", "through the mount", "records/s", speed)
	return nil
}

func (r *replBencher) recordsMount(ctx context.Context, round, size, files int) (float64, error) {
	c, err := r.cluster(ctx, "async")
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(c.dir, fmt.Sprintf("records-%d", round))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, fmt.Errorf("make a directory: %w", err)
	}
	fs := make([]*os.File, files)
	for i := range fs {
		if fs[i], err = fresh(filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return 0, err
		}
		defer fs[i].Close()
	}
	if err := c.settle(ctx); err != nil {
		return 0, err
	}
	buf, n := incompressible(size), r.n(40_000)
	begun := time.Now()
	for i := range n {
		if _, err := fs[i%files].Write(buf); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
		if err := canceled(ctx, i); err != nil {
			return 0, err
		}
	}
	last := (n - 1) % files
	end := int64(size) * int64((n-1)/files+1)
	path := filepath.Join(r.standbyStore("async"), filepath.Base(dir), strconv.Itoa(last))
	if err := awaitSize(ctx, path, end); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	if err := os.RemoveAll(dir); err != nil {
		return 0, fmt.Errorf("remove the files: %w", err)
	}
	return float64(n) / took.Seconds(), c.settle(ctx)
}
