package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	gitPushes = 10
	// The repository to clone: binary files that do not compress, and text
	// files that do, some times changed. Its pack is gitPack large.
	gitPack       = 160 << 20
	gitBinary     = 64 << 10
	gitBinaries   = 1200
	gitText       = 10 << 10
	gitTexts      = 4700
	gitTextRounds = 4
)

// gitWorkloads are a clone on the target and pushes into it.
func (m *material) gitWorkloads() []Workload {
	needs := func() error {
		if _, err := exec.LookPath("git"); err != nil {
			return &notInstalledError{"git"}
		}
		return nil
	}
	return []Workload{
		{
			Name: "git-clone", Unit: "clone", needs: needs,
			About: fmt.Sprintf("git clone, with checkout, of a repository of about %d MiB on the target", m.n(gitPack)>>20),
			setup: func(ctx context.Context, dir string) error {
				origin, err := m.make(ctx, "origin.git", m.makeRepository)
				if err != nil {
					return err
				}
				_, err = command{name: "cp", args: []string{"-a", origin, filepath.Join(dir, "origin.git")}}.run(ctx)
				return err
			},
			cleanup: func(_ context.Context, dir string) error { return os.RemoveAll(filepath.Join(dir, "clone")) },
			run: func(ctx context.Context, dir string) (sample, error) {
				// As over the network, not by hard links.
				return sample{ops: 1}, git(ctx, "clone", "-q", "--no-local", filepath.Join(dir, "origin.git"), filepath.Join(dir, "clone"))
			},
		},
		{
			Name: "git-push", Unit: "push", needs: needs,
			About: fmt.Sprintf("%d git pushes of a commit each into a bare repository on the target, fsynced as Gitaly does", gitPushes),
			prepare: func(ctx context.Context, dir string) error {
				bare := filepath.Join(dir, "bare.git")
				if err := git(ctx, "init", "-q", "--bare", "--template=", "-b", "main", bare); err != nil {
					return err
				}
				for key, value := range map[string]string{
					"core.fsync": "objects,derived-metadata,reference", "core.fsyncMethod": "fsync",
					"receive.autogc": "false", "gc.auto": "0",
				} {
					if err := git(ctx, "-C", bare, "config", key, value); err != nil {
						return err
					}
				}
				return nil
			},
			cleanup: empty,
			run: func(ctx context.Context, dir string) (sample, error) {
				client, err := m.make(ctx, "client.git", m.makeClient)
				if err != nil {
					return sample{}, err
				}
				begun := time.Now()
				for i := range gitPushes {
					refspec := fmt.Sprintf("main~%d:refs/heads/main", gitPushes-1-i)
					if err := git(ctx, "-C", client, "push", "-q", filepath.Join(dir, "bare.git"), refspec); err != nil {
						return sample{}, err
					}
				}
				return sample{ops: gitPushes, took: time.Since(begun)}, nil
			},
		},
	}
}

// git runs git with nothing of the machine's or the user's configuration.
func git(ctx context.Context, args ...string) error {
	_, err := gitCommand(args...).run(ctx)
	return err
}

func gitCommand(args ...string) command {
	return command{name: "git", args: args, env: []string{
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	}}
}

// makeRepository makes the bare repository that is cloned.
func (m *material) makeRepository(ctx context.Context, path string) error {
	binaries, texts := m.n(gitBinaries), m.n(gitTexts)
	return fastImport(ctx, path, gitTextRounds, func(round int, add func(name string, data []byte)) {
		rng := rand.New(rand.NewPCG(3, uint64(round)))
		for i := range texts {
			add(fmt.Sprintf("src/%03d/f%d.txt", i/perDir, i), prose(rng, gitText/2+rng.IntN(gitText)))
		}
		for i := round; i < binaries; i += gitTextRounds {
			add(fmt.Sprintf("bin/%03d/%d", i/perDir, i), noise(rng, gitBinary))
		}
	})
}

// prose is text that compresses about as well as source code.
func prose(rng *rand.Rand, n int) []byte {
	const letters = "etaoinshrdlucmfwypvbgk_(){}=;"
	b := make([]byte, 0, n+16)
	for len(b) < n {
		// A word is the same whenever its number comes up again; low ones do often.
		number := rng.IntN(1 + rng.IntN(4000))
		for k := number + 7; k > 0; k /= 5 {
			b = append(b, letters[k%len(letters)])
		}
		sep := byte(' ')
		if number%9 == 0 {
			sep = '\n'
		}
		b = append(b, sep)
	}
	return b[:n]
}

// makeClient makes the repository that is pushed from, a commit at a time.
func (m *material) makeClient(ctx context.Context, path string) error {
	return fastImport(ctx, path, gitPushes, func(commit int, add func(name string, data []byte)) {
		rng := rand.New(rand.NewPCG(4, uint64(commit)))
		for i := range 20 {
			add(fmt.Sprintf("d%d/f%d", i%4, i), noise(rng, 1000+100*commit))
		}
	})
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// fastImport makes a bare repository with a branch main of some commits.
func fastImport(ctx context.Context, path string, commits int, files func(commit int, add func(name string, data []byte))) error {
	if err := git(ctx, "init", "-q", "--bare", "--template=", "-b", "main", path); err != nil {
		return err
	}
	cmd, err := gitCommand("-C", path, "fast-import", "--quiet").build(ctx)
	if err != nil {
		return err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("feed git fast-import: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start git fast-import: %w", err)
	}
	w := bufio.NewWriterSize(in, 1<<20)
	// A writer that has failed stays so: Flush tells.
	printf := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	for c := range commits {
		printf("commit refs/heads/main\ncommitter bench <bench@example.invalid> %d +0000\ndata 7\ncommit\n\n", 1e9+c)
		files(c, func(name string, data []byte) {
			printf("M 100644 inline %s\ndata %d\n", name, len(data))
			_, _ = w.Write(data)
			printf("\n")
		})
	}
	err = errors.Join(w.Flush(), in.Close(), cmd.Wait())
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("git fast-import: %w", err)
	}
	return nil
}
