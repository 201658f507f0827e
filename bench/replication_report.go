package bench

import (
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
)

// ReplicationReport is what RunReplication has measured.
type ReplicationReport struct {
	Version    string    `json:"version"`
	Started    time.Time `json:"started"`
	Seconds    float64   `json:"seconds"`
	Host       Host      `json:"host"`
	FileSystem string    `json:"file_system"`
	// PeerFileSystem is the standby's, if it has one of its own.
	PeerFileSystem string   `json:"peer_file_system,omitempty"`
	Rounds         int      `json:"rounds"`
	Scale          float64  `json:"scale"`
	Numbers        []Number `json:"numbers"`
}

// Number is one that was measured in each round.
type Number struct {
	Workload string    `json:"workload"`
	Name     string    `json:"name"`
	Unit     string    `json:"unit,omitempty"` // of a ratio none
	Rounds   []float64 `json:"rounds"`
	Median   float64   `json:"median"`
	// Limit is what it shall be at most, or AtLeast; 0 is no limit.
	Limit   float64 `json:"limit,omitempty"`
	AtLeast bool    `json:"at_least,omitempty"`
	Reached bool    `json:"reached,omitempty"`
	// NotJudged is why a number with a limit is not judged.
	NotJudged string `json:"not_judged,omitempty"`
}

// replLimits are what the numbers shall reach.
var replLimits = []Number{
	{Workload: "lag", Name: "p50", Limit: 1},
	{Workload: "lag", Name: "p99", Limit: 5},
	{Workload: "stream", Name: "log to store / raw", Limit: 0.7, AtLeast: true},
	{Workload: "stream", Name: "mount to store / raw", Limit: 0.7, AtLeast: true},
	{Workload: "stream", Name: "network bytes / payload", Limit: 1.05},
	{Workload: "records", Name: "memory to memory", Limit: 100_000, AtLeast: true},
	{Workload: "fsync", Name: "mount / max(local, round trip + peer)", Limit: 1.3},
	{Workload: "fsync", Name: "16 writers to 16 files / one", Limit: 3, AtLeast: true},
}

func (r *ReplicationReport) add(workload, name, unit string, v float64) {
	for i := range r.Numbers {
		if n := &r.Numbers[i]; n.Workload == workload && n.Name == name {
			n.Rounds = append(n.Rounds, v)
			return
		}
	}
	n := Number{Workload: workload, Name: name, Unit: unit, Rounds: []float64{v}}
	for _, l := range replLimits {
		if l.Workload == workload && l.Name == name {
			n.Limit, n.AtLeast = l.Limit, l.AtLeast
		}
	}
	r.Numbers = append(r.Numbers, n)
}

func (r *ReplicationReport) finish() {
	r.Seconds = time.Since(r.Started).Seconds()
	r.Host.LoadAfter = loadAverage()
	for i := range r.Numbers {
		n := &r.Numbers[i]
		n.Median = median(n.Rounds)
		switch {
		case n.Limit == 0:
		case n.Workload == "fsync" && r.FileSystem == "tmpfs":
			n.NotJudged = "meant on a disk"
		case n.AtLeast:
			n.Reached = n.Median >= n.Limit
		default:
			n.Reached = n.Median <= n.Limit
		}
	}
}

// Print writes the report as Markdown.
func (r *ReplicationReport) Print(w io.Writer) error {
	p := &printer{w: w}
	on := r.FileSystem
	if r.PeerFileSystem != "" {
		on += ", the standby on " + r.PeerFileSystem
	}
	p.line("replfs %s, Linux %s, %d CPUs, on %s; %d rounds, scale %g, %.0f s; load average before %s, after %s", r.Version,
		r.Host.Kernel, r.Host.CPUs, on, r.Rounds, r.Scale, r.Seconds, r.Host.LoadBefore, r.Host.LoadAfter)
	p.line("")
	var rows []table.Row
	for _, n := range r.Numbers {
		wanted, reached := "", ""
		if n.Limit != 0 {
			op := "≤"
			if n.AtLeast {
				op = "≥"
			}
			wanted = op + " " + quantity(n.Limit, n.Unit)
			switch {
			case n.NotJudged != "":
				reached = n.NotJudged
			case n.Reached:
				reached = "yes"
			default:
				reached = "no"
			}
		}
		rows = append(rows, table.Row{n.Workload, n.Name, quantity(n.Median, n.Unit), wanted, reached})
	}
	p.table(table.Row{"workload", "number", "median", "wanted", "reached"}, rows)
	return p.err
}

func quantity(v float64, unit string) string {
	switch {
	case unit == "":
		return fmt.Sprintf("%.2f x", v)
	case v >= 1000:
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.3g %s", v, unit)
}
