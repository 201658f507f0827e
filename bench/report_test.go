package bench

import (
	"strings"
	"testing"
	"time"
)

// reportOf makes a report of rounds, in microseconds, by target.
func reportOf(fs, workload string, rounds map[string][]float64) *Report {
	r := &Report{Started: time.Now(), FileSystem: fs, Workloads: []WorkloadInfo{{Name: workload, About: workload, Unit: "op"}}}
	for name, us := range rounds {
		res := Result{Workload: workload, Target: name}
		for _, v := range us {
			res.add(sample{ops: 10, took: time.Duration(v * 10 * 1000)}, nil, nil)
		}
		r.Targets = append(r.Targets, TargetInfo{Name: name})
		r.Results = append(r.Results, res)
	}
	r.finish()
	return r
}

// TestRatios: ratios are those of the same round, so that a machine that is
// slower in one round does not distort them.
func TestRatios(t *testing.T) {
	r := reportOf("tmpfs", "untar", map[string][]float64{
		"bare": {10, 10, 100}, "loopback": {50, 40, 400}, "alone": {20, 20, 200}, "async": {30, 60, 300},
	})
	async := r.result("untar", "async")
	if async.Median != 60 || async.Ratio["bare"] != 3 || async.Ratio["loopback"] != 0.75 {
		t.Errorf("%+v", async)
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median of four: %g", m)
	}
}

// TestVerdicts: each wanted number is judged by its own comparison, and only
// where it is meant.
func TestVerdicts(t *testing.T) {
	r := reportOf("tmpfs", "untar", map[string][]float64{"bare": {10}, "loopback": {40}, "alone": {32}, "async": {44}})
	want := map[string]bool{"alone": true, "async": false}
	if len(r.Wanted) != len(want) {
		t.Fatalf("%+v", r.Wanted)
	}
	for _, v := range r.Wanted {
		if v.Reached != want[v.Target] || v.NotJudged != "" {
			t.Errorf("%+v", v)
		}
	}
	// Half the time is twice the speed.
	r = reportOf("tmpfs", "write", map[string][]float64{"bare": {10}, "alone": {20}})
	if v := r.Wanted[0]; v.Measured != 0.5 || v.Reached {
		t.Errorf("%+v", v)
	}
	r = reportOf("ext4", "pgbench-tpcb", map[string][]float64{"bare": {10}, "alone": {11}})
	if v := r.Wanted[0]; !v.Reached || v.NotJudged != "" {
		t.Errorf("%+v", v)
	}
	r = reportOf("tmpfs", "pgbench-tpcb", map[string][]float64{"bare": {10}, "alone": {11}})
	if v := r.Wanted[0]; v.Reached || v.NotJudged != "meant on a disk" {
		t.Errorf("%+v", v)
	}
	r = reportOf("tmpfs", "delete", map[string][]float64{"bare": {10}, "alone": {11}})
	if v := r.Wanted[0]; v.Reached || v.NotJudged != "loopback was not measured" {
		t.Errorf("%+v", v)
	}
}

// TestRequestsOfAnOperation: FORGETs are shown but not summed.
func TestRequestsOfAnOperation(t *testing.T) {
	res := Result{Workload: "untar", Target: "alone"}
	res.add(sample{ops: 4, took: 1}, map[string]uint64{"WRITE": 10, "INIT": 1}, map[string]uint64{"WRITE": 14, "FORGET": 8, "INIT": 1})
	res.add(sample{ops: 4, took: 1}, map[string]uint64{"WRITE": 14, "FORGET": 8, "INIT": 1}, map[string]uint64{"WRITE": 22, "FORGET": 8, "INIT": 1})
	r := &Report{Started: time.Now(), Results: []Result{res}, Targets: []TargetInfo{{Name: "alone"}}, Workloads: []WorkloadInfo{{Name: "untar", About: "tar -x"}}}
	r.finish()
	got := r.Results[0]
	if got.Requests["WRITE"] != 1.5 || got.Requests["FORGET"] != 1 || got.RequestsSum != 1.5 || len(got.Requests) != 2 {
		t.Errorf("%+v", got)
	}
	var out strings.Builder
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| tar -x |", "| untar | alone | 1.50 | WRITE 1.50, FORGET 1.00 |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}
