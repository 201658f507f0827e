package bench

import (
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sys/unix"
)

// Report is what a run has measured.
type Report struct {
	Version    string         `json:"version"`
	Started    time.Time      `json:"started"`
	Seconds    float64        `json:"seconds"`
	Host       Host           `json:"host"`
	FileSystem string         `json:"file_system"`
	Rounds     int            `json:"rounds"`
	Scale      float64        `json:"scale"`
	Targets    []TargetInfo   `json:"targets"`
	Workloads  []WorkloadInfo `json:"workloads"`
	Results    []Result       `json:"results"`
	Wanted     []Verdict      `json:"wanted"`
}

// Host is the machine, and how busy it was with this run and all else.
type Host struct {
	Kernel     string `json:"kernel"`
	CPUs       int    `json:"cpus"`
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
}

// TargetInfo describes a target of the run.
type TargetInfo struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	Skipped string `json:"skipped,omitempty"`
}

// WorkloadInfo describes a workload of the run.
type WorkloadInfo struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	Unit    string `json:"unit"`
	Skipped string `json:"skipped,omitempty"`
}

// Result is how a workload did on a target.
type Result struct {
	Workload string `json:"workload"`
	Target   string `json:"target"`
	// Ops is how many operations a round was: of the last one, where it varies.
	Ops int `json:"ops"`
	// Rounds are the microseconds that one operation took in each round.
	Rounds []float64 `json:"rounds_us"`
	// Median is the median of the rounds.
	Median float64 `json:"median_us"`
	// Ratio is the median over the rounds of this target's time to the base's
	// in the same round, by the base's name.
	Ratio map[string]float64 `json:"ratio,omitempty"`
	// Requests are the FUSE requests of one operation, by opcode, over all
	// rounds; only of what counts them. FORGETs, whose time is the kernel's
	// choice, are among them but not in the sum.
	Requests    map[string]float64 `json:"requests,omitempty"`
	RequestsSum float64            `json:"requests_sum,omitempty"`

	counts map[string]uint64
	ops    int
}

func (r *Result) add(s sample, before, after map[string]uint64) {
	r.Ops = s.ops
	r.ops += s.ops
	r.Rounds = append(r.Rounds, float64(s.took.Nanoseconds())/1000/float64(s.ops))
	if after == nil {
		return
	}
	if r.counts == nil {
		r.counts = map[string]uint64{}
	}
	for op, n := range after {
		r.counts[op] += n - before[op]
	}
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// ratioBases are the targets that others are compared with.
var ratioBases = []string{"bare", "loopback", "loopback-nopass"}

func (r *Report) result(workload, target string) *Result {
	for i := range r.Results {
		if r.Results[i].Workload == workload && r.Results[i].Target == target {
			return &r.Results[i]
		}
	}
	return nil
}

// finish works out what follows from the measurements.
func (r *Report) finish() {
	r.Seconds = time.Since(r.Started).Seconds()
	r.Host.LoadAfter = loadAverage()
	for i := range r.Results {
		res := &r.Results[i]
		res.Median = median(res.Rounds)
		res.Ratio = map[string]float64{}
		for _, name := range ratioBases {
			base := r.result(res.Workload, name)
			if base == nil || base == res {
				continue
			}
			var pairs []float64
			for k := range res.Rounds {
				pairs = append(pairs, res.Rounds[k]/base.Rounds[k])
			}
			res.Ratio[name] = median(pairs)
		}
		if res.counts == nil {
			continue
		}
		res.Requests = map[string]float64{}
		for op, n := range res.counts {
			if n == 0 {
				continue
			}
			each := float64(n) / float64(res.ops)
			res.Requests[op] = each
			if op != "FORGET" {
				res.RequestsSum += each
			}
		}
	}
	r.judge()
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func host() Host {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return Host{Kernel: kernel, CPUs: runtime.NumCPU(), LoadBefore: loadAverage()}
}

// Print writes the report as Markdown.
func (r *Report) Print(w io.Writer) error {
	p := &printer{w: w}
	p.line("replfs %s, Linux %s, %d CPUs, on %s; %d rounds, scale %g, %.0f s; load average before %s, after %s", r.Version,
		r.Host.Kernel, r.Host.CPUs, r.FileSystem, r.Rounds, r.Scale, r.Seconds, r.Host.LoadBefore, r.Host.LoadAfter)
	p.line("")
	p.line("Median time of one operation, and how many times that of the bare store it is (in the same round; median).")
	p.line("")
	r.printTimes(p)
	if slices.ContainsFunc(r.Results, func(x Result) bool { return x.Requests != nil }) {
		p.line("")
		p.line("FUSE requests of one operation.")
		p.line("")
		r.printRequests(p)
	}
	if len(r.Wanted) > 0 {
		p.line("")
		p.line("Wanted and measured. Time is this target's to the base's, speed the inverse.")
		p.line("")
		r.printWanted(p)
	}
	p.line("")
	for _, t := range r.Targets {
		p.line("- %s: %s%s", t.Name, t.About, skipped(t.Skipped))
	}
	for _, l := range r.Workloads {
		if l.Skipped != "" {
			p.line("- %s: %s%s", l.Name, l.About, skipped(l.Skipped))
		}
	}
	return p.err
}

func skipped(why string) string {
	if why == "" {
		return ""
	}
	return " (not measured: " + why + ")"
}

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) table(head table.Row, rows []table.Row) {
	t := table.NewWriter()
	t.AppendHeader(head)
	t.AppendRows(rows)
	p.line("%s", t.RenderMarkdown())
}

func (r *Report) printTimes(p *printer) {
	head := table.Row{"workload", "one"}
	for _, t := range r.Targets {
		head = append(head, t.Name)
	}
	var rows []table.Row
	for _, l := range r.Workloads {
		row := table.Row{l.About, l.Unit}
		for _, t := range r.Targets {
			res := r.result(l.Name, t.Name)
			switch {
			case t.Skipped != "":
				row = append(row, t.Skipped)
			case l.Skipped != "":
				row = append(row, l.Skipped)
			case res == nil:
				row = append(row, "")
			default:
				row = append(row, cell(res))
			}
		}
		rows = append(rows, row)
	}
	p.table(head, rows)
}

func cell(res *Result) string {
	s := duration(res.Median)
	if ratio, ok := res.Ratio["bare"]; ok {
		s += fmt.Sprintf(" (%.2f x)", ratio)
	}
	return s
}

func duration(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.1f µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.1f ms", us/1e3)
	}
	return fmt.Sprintf("%.2f s", us/1e6)
}

func (r *Report) printRequests(p *printer) {
	var rows []table.Row
	for _, res := range r.Results {
		if res.Requests == nil {
			continue
		}
		var parts []string
		ops := slices.SortedFunc(maps.Keys(res.Requests), func(a, b string) int {
			if res.Requests[a] > res.Requests[b] || res.Requests[a] == res.Requests[b] && a < b {
				return -1
			}
			return 1
		})
		for _, op := range ops {
			if n := res.Requests[op]; n >= 0.005 {
				parts = append(parts, fmt.Sprintf("%s %.2f", op, n))
			}
		}
		rows = append(rows, table.Row{res.Workload, res.Target, fmt.Sprintf("%.2f", res.RequestsSum), strings.Join(parts, ", ")})
	}
	p.table(table.Row{"workload", "target", "requests", "of which"}, rows)
}

func (r *Report) printWanted(p *printer) {
	var rows []table.Row
	for _, v := range r.Wanted {
		op := "≤"
		if v.Kind == Speed {
			op = "≥"
		}
		measured, reached := fmt.Sprintf("%.2f x", v.Measured), "no"
		switch {
		case v.NotJudged != "":
			measured, reached = "", v.NotJudged
		case v.Reached:
			reached = "yes"
		}
		rows = append(rows, table.Row{v.Workload, v.Target, fmt.Sprintf("%s %s %.2f x %s", v.Kind, op, v.Limit, v.Base), measured, reached})
	}
	p.table(table.Row{"workload", "target", "wanted", "measured", "reached"}, rows)
}
