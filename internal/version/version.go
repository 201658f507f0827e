// Package version says which build of replfs this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set at build time: -ldflags "-X github.com/replfs/replfs/internal/version.Version=v1.2.3".
var (
	Version string
	Commit  string
	Date    string
)

// Info describes a build. What is not known is empty.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Date    string `json:"date"`
	Go      string `json:"go"`
}

// Get returns what the linker was told, and what it was not told from the
// information that the go command leaves in the binary.
func Get() Info {
	build, _ := debug.ReadBuildInfo()
	return complete(Info{Version: Version, Commit: Commit, Date: Date}, build)
}

func complete(i Info, build *debug.BuildInfo) Info {
	i.Go = runtime.Version()
	if build != nil {
		settings := map[string]string{}
		for _, s := range build.Settings {
			settings[s.Key] = s.Value
		}
		if i.Version == "" {
			i.Version = build.Main.Version
		}
		if i.Commit == "" {
			i.Commit = fmt.Sprintf("%.12s", settings["vcs.revision"])
			if i.Commit != "" && settings["vcs.modified"] == "true" {
				i.Commit += "-dirty"
			}
		}
		if i.Date == "" {
			i.Date = settings["vcs.time"]
		}
	}
	if i.Version == "" {
		i.Version = "(devel)"
	}
	return i
}

// String is one line for people.
func (i Info) String() string {
	s := "replfs " + i.Version
	if i.Commit != "" {
		s += ", commit " + i.Commit
	}
	if i.Date != "" {
		s += ", of " + i.Date
	}
	return s + ", " + i.Go
}
