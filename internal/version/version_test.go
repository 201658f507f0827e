package version

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestComplete(t *testing.T) {
	build := &debug.BuildInfo{Main: debug.Module{Version: "v0.9.0"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}, {Key: "vcs.modified", Value: "true"},
	}}
	set := Info{Version: "v1.2.3", Commit: "abc", Date: "today"}
	for _, p := range []struct {
		in    Info
		build *debug.BuildInfo
		want  Info
		text  string
	}{
		{set, build, Info{"v1.2.3", "abc", "today", runtime.Version()}, "replfs v1.2.3, commit abc, of today, " + runtime.Version()},
		{Info{}, build, Info{"v0.9.0", "0123456789ab-dirty", "2026-01-02T03:04:05Z", runtime.Version()}, "replfs v0.9.0, commit 0123456789ab-dirty, of 2026-01-02T03:04:05Z, " + runtime.Version()},
		{Info{}, nil, Info{Version: "(devel)", Go: runtime.Version()}, "replfs (devel), " + runtime.Version()},
	} {
		got := complete(p.in, p.build)
		if got != p.want {
			t.Errorf("got %+v, want %+v", got, p.want)
		}
		if got.String() != p.text {
			t.Errorf("got %q, want %q", got.String(), p.text)
		}
	}
}
