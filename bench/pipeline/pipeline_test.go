package pipeline

import (
	"testing"

	"go.uber.org/goleak"
)

func TestRun(t *testing.T) {
	for _, opt := range []Options{
		{Records: 5000, Size: 1 << 10, Files: 50},
		{Records: 100, Size: 256 << 10, Files: 1, TCP: true},
		{Records: 5000, Size: 100, Files: 7, TCP: true, Compress: true},
	} {
		opt.Dir = t.TempDir()
		res, err := Run(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		if res.Records != opt.Records || res.Seconds <= 0 {
			t.Errorf("%+v", res)
		}
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func BenchmarkRun(b *testing.B) {
	for name, opt := range map[string]Options{
		"1K to 200 files, memory": {Records: 300000, Size: 1 << 10, Files: 200},
		"1K to 200 files, TCP":    {Records: 300000, Size: 1 << 10, Files: 200, TCP: true},
		"128K to one file, TCP":   {Records: 4000, Size: 128 << 10, Files: 1, TCP: true},
	} {
		b.Run(name, func(b *testing.B) {
			opt.Dir = "/dev/shm"
			for b.Loop() {
				res, err := Run(b.Context(), opt)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(res.Records)/res.Seconds, "records/s")
				b.ReportMetric(float64(res.Records*opt.Size)/res.Seconds/1e6, "MB/s")
			}
		})
	}
}
