package bench

// Kind says how a wanted number compares two targets.
type Kind string

const (
	// Time is the target's time to the base's: at most the limit.
	Time Kind = "time"
	// Speed is the inverse: at least the limit.
	Speed Kind = "speed"
)

// Wanted is a number to reach.
type Wanted struct {
	Workload string  `json:"workload"`
	Target   string  `json:"target"`
	Base     string  `json:"base"`
	Kind     Kind    `json:"kind"`
	Limit    float64 `json:"limit"`
	// Disk says that it is meant on a disk; the others are meant on a tmpfs,
	// where nothing hides the software's own cost.
	Disk bool `json:"disk,omitempty"`
}

// Verdict is whether a run reached a wanted number.
type Verdict struct {
	Wanted
	Measured float64 `json:"measured,omitempty"`
	Reached  bool    `json:"reached"`
	// NotJudged is why there is no verdict.
	NotJudged string `json:"not_judged,omitempty"`
}

// wantedNumbers are what the mount shall reach.
var wantedNumbers = []Wanted{
	{Workload: "untar", Target: "alone", Base: "loopback", Kind: Time, Limit: 0.85},
	{Workload: "untar", Target: "async", Base: "loopback", Kind: Time, Limit: 1.0},
	{Workload: "delete", Target: "alone", Base: "loopback", Kind: Time, Limit: 0.7},
	{Workload: "find", Target: "async", Base: "bare", Kind: Time, Limit: 1.5},
	// A file system that has to see every write compares with one that does.
	{Workload: "overwrite", Target: "async", Base: "loopback-nopass", Kind: Speed, Limit: 0.8},
	{Workload: "write", Target: "alone", Base: "bare", Kind: Speed, Limit: 0.6},
	{Workload: "read", Target: "async", Base: "bare", Kind: Speed, Limit: 0.9},
	{Workload: "git-clone", Target: "async", Base: "bare", Kind: Time, Limit: 1.8},
	{Workload: "git-push", Target: "async", Base: "bare", Kind: Time, Limit: 1.25},
	{Workload: "pgbench-tpcb", Target: "alone", Base: "bare", Kind: Speed, Limit: 0.85, Disk: true},
	{Workload: "pgbench-select", Target: "alone", Base: "bare", Kind: Speed, Limit: 0.9, Disk: true},
}

// judge compares the run with the wanted numbers of the workloads in it.
func (r *Report) judge() {
	for _, w := range wantedNumbers {
		res := r.result(w.Workload, w.Target)
		if res == nil {
			continue
		}
		v := Verdict{Wanted: w}
		ratio, ok := res.Ratio[w.Base]
		switch {
		case !ok:
			v.NotJudged = w.Base + " was not measured"
		case w.Disk != (r.FileSystem != "tmpfs"):
			v.NotJudged = "meant on a tmpfs"
			if w.Disk {
				v.NotJudged = "meant on a disk"
			}
		case w.Kind == Speed:
			v.Measured = 1 / ratio
			v.Reached = v.Measured >= w.Limit
		default:
			v.Measured = ratio
			v.Reached = ratio <= w.Limit
		}
		r.Wanted = append(r.Wanted, v)
	}
}
