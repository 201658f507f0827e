package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// gitLimit bounds one git command.
const gitLimit = 60 * time.Second

// GitRepo is a bare repository that receives pushes.
type GitRepo struct {
	dir       string
	namespace *Namespace
}

// OpenGitRepo uses a bare repository that is there, or that Init will make.
func OpenGitRepo(dir string, namespace *Namespace) *GitRepo {
	return &GitRepo{dir: dir, namespace: namespace}
}

// Dir is where the repository lies.
func (g *GitRepo) Dir() string { return g.dir }

// Init makes the bare repository with the durability that GitLab's Gitaly asks
// for: objects and references are synced before a push is answered.
func (g *GitRepo) Init(ctx context.Context) error {
	if _, err := g.git(ctx, "", "init", "-q", "--bare", "-b", "main", g.dir); err != nil {
		return err
	}
	for key, value := range map[string]string{
		"core.fsync":       "objects,derived-metadata,reference",
		"core.fsyncMethod": "fsync",
		// One pack a push, so that the load knows which directories to sync.
		"receive.unpackLimit": "1",
		// Nothing in the background that would outlive the push.
		"receive.autogc": "false",
		"gc.auto":        "0",
	} {
		if _, err := g.git(ctx, g.dir, "config", key, value); err != nil {
			return err
		}
	}
	return nil
}

// git runs a git command in a directory and returns what it printed.
func (g *GitRepo) git(ctx context.Context, dir string, args ...string) (string, error) {
	return runGit(ctx, g.namespace, dir, args...)
}

// runGit runs git with nothing of the machine's or the user's configuration.
func runGit(ctx context.Context, ns *Namespace, dir string, args ...string) (string, error) {
	bin, err := exec.LookPath("git")
	if err != nil {
		return "", fmt.Errorf("find git (apt-get install git): %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, gitLimit)
	defer cancel()
	return RunOK(ctx, Command{
		Name: "git " + args[0], Path: bin, Args: args, Dir: dir,
		Namespace: ns, Isolated: true,
		Env: []string{
			"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
			"GIT_AUTHOR_NAME=lab", "GIT_AUTHOR_EMAIL=lab@example.invalid",
			"GIT_COMMITTER_NAME=lab", "GIT_COMMITTER_EMAIL=lab@example.invalid",
		},
	})
}

// Fsck checks every object and reference of the repository.
func (g *GitRepo) Fsck(ctx context.Context) error {
	_, err := g.git(ctx, g.dir, "fsck", "--full", "--strict", "--no-dangling", "--no-progress")
	return err
}

// syncDirs makes the names that a push has made durable: git syncs the files it
// writes and never the directories it renames them in, and a name that is only
// in memory may vanish in a crash.
func (g *GitRepo) syncDirs() error {
	for _, dir := range []string{"objects/pack", "refs/heads"} {
		if err := syncDir(filepath.Join(g.dir, dir)); err != nil {
			return err
		}
	}
	return nil
}

// syncDir syncs one directory.
func syncDir(dir string) error {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return fmt.Errorf("sync a directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync a directory: %w", err)
	}
	return nil
}

// GitLoad pushes commits, one at a time to each repository.
type GitLoad struct {
	*Load
	branch  string
	commits []map[string]entry // of each repository: what was attempted
}

// StartGitLoad starts one worker a repository. Each clones it beneath work,
// which should lie outside the mount, and pushes commit after commit to a
// branch. A push counts as acknowledged when git has said so and the
// repository's directories are synced.
func StartGitLoad(ctx context.Context, branch, work string, repos ...*GitRepo) (*GitLoad, error) {
	l := &GitLoad{branch: branch, commits: make([]map[string]entry, len(repos))}
	clones := make([]string, len(repos))
	for i, repo := range repos {
		l.commits[i] = make(map[string]entry)
		clones[i] = filepath.Join(work, fmt.Sprintf("%s-%d", branch, i))
		if _, err := repo.git(ctx, "", "clone", "-q", repo.dir, clones[i]); err != nil {
			return nil, err
		}
		if _, err := repo.git(ctx, clones[i], "checkout", "-q", "-B", branch); err != nil {
			return nil, err
		}
	}
	step := func(ctx context.Context, ledger *ledger, w int) error {
		e := ledger.attempt(w)
		if err := l.push(ctx, repos[w], clones[w], w, e); err != nil {
			return err
		}
		ledger.ack(e)
		return nil
	}
	l.Load = startLoad(ctx, len(repos), step, func(int) {})
	return l, nil
}

// push makes a commit and pushes it.
func (l *GitLoad) push(ctx context.Context, repo *GitRepo, clone string, worker int, e entry) error {
	// A few files that grow in number, so that trees change as well as blobs.
	name := fmt.Sprintf("dir%d/file%d.txt", e.seq%7, e.seq%50)
	path := filepath.Join(clone, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write in the clone: %w", err)
	}
	if err := os.WriteFile(path, []byte(payload(l.branch, e)+"\n"), 0o644); err != nil {
		return fmt.Errorf("write in the clone: %w", err)
	}
	if _, err := repo.git(ctx, clone, "add", name); err != nil {
		return err
	}
	if _, err := repo.git(ctx, clone, "commit", "-q", "-m", e.String()); err != nil {
		return err
	}
	id, err := repo.git(ctx, clone, "rev-parse", "HEAD")
	if err != nil {
		return err
	}
	l.commits[worker][strings.TrimSpace(id)] = e
	if _, err := repo.git(ctx, clone, "push", "-q", "origin", l.branch); err != nil {
		return err
	}
	return repo.syncDirs()
}

// Verify looks for every acknowledged commit on the branch of repositories that
// stand for those the load pushed to, in the same order, and runs git fsck.
func (l *GitLoad) Verify(ctx context.Context, repos ...*GitRepo) (Report, error) {
	if err := l.stopped(); err != nil {
		return Report{}, err
	}
	if len(repos) != len(l.commits) {
		return Report{}, fmt.Errorf("the load pushed to %d repositories, not %d", len(l.commits), len(repos))
	}
	found := make(map[entry]bool)
	var faults []string
	for i, repo := range repos {
		if err := repo.Fsck(ctx); err != nil {
			faults = append(faults, err.Error())
		}
		// A branch that is not there holds nothing.
		out, err := repo.git(ctx, repo.dir, "for-each-ref", "--format=%(objectname)", "refs/heads/"+l.branch)
		if err != nil {
			return Report{}, err
		}
		tip := strings.TrimSpace(out)
		if tip == "" {
			continue
		}
		if out, err = repo.git(ctx, repo.dir, "rev-list", tip); err != nil {
			faults = append(faults, err.Error())
			continue
		}
		for id := range strings.FieldsSeq(out) {
			e, ok := l.commits[i][id]
			if !ok {
				faults = append(faults, fmt.Sprintf("commit %s in %s is nobody's", id, repo.dir))
				continue
			}
			found[e] = true
		}
	}
	report := l.ledger.compare("git pushes", found)
	for _, fault := range faults {
		report.problem("%s", fault)
	}
	return report, nil
}
