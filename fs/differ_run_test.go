package fs

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// differ runs one sequence of operations on two directories and compares what
// each of them says. It is a process of its own: it maps files of the mount.
type differ struct {
	Seed  uint64
	Steps int
	// Roots are the plain directory and the one in the mount.
	Roots [2]string
	// Store is what the mount shows, if the second root is in one.
	Store string
	// Fstype is what both lie on.
	Fstype string
	// Corrupt makes one side say something else at this step: the comparison
	// itself is to be tested.
	Corrupt int
}

// differDepth is how far below its root a side begins, so that ".." stays on it.
const differDepth = "r/r/r/r"

// slots is how many descriptors a side has.
const slots = 8

// side is one of the two directories.
type side struct {
	base int
	fds  [slots]int
	// flags are those that a descriptor was opened with.
	flags [slots]int
}

// op is one operation, to be done on both sides. What a kind does not need is
// left out.
type op struct {
	kind         *opKind
	who          int
	path, path2  string
	slot, slot2  int
	flags        int
	mode         uint32
	off, off2, n int64
	a, b         int
	text         string
}

// opKind is a kind of operation: how to make up one, and how to do it on a
// side. do says all that the caller can see of the outcome.
type opKind struct {
	name   string
	weight int
	gen    func(g *gen, o *op)
	do     func(s *side, o *op) string
}

func (o *op) String() string {
	return fmt.Sprintf("%s as %s: path %.100q %.60q slot %d %d flags %#x mode %#o off %d %d n %d a %d b %d text %.60q",
		o.kind.name, actors[o.who].name, o.path, o.path2, o.slot, o.slot2, o.flags, o.mode, o.off, o.off2, o.n, o.a, o.b, o.text)
}

func helperDiffer(arg string) int {
	var d differ
	err := json.Unmarshal([]byte(arg), &d)
	if err == nil {
		err = d.run()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func (d *differ) run() (err error) {
	var sides [2]*side
	for i, root := range d.Roots {
		if sides[i], err = newSide(root); err != nil {
			return err
		}
		defer sides[i].close()
	}
	var who []*actor
	for _, identity := range actors {
		a, err := startActor(identity)
		if err != nil {
			return err
		}
		defer a.stop()
		who = append(who, a)
	}
	var store *side
	if d.Store != "" {
		if store, err = newSide(d.Store); err != nil {
			return err
		}
		defer store.close()
	}
	g := newGen(d.Seed, d.Fstype)
	for i, a := range who {
		umask := []int{0o022, 0, 0o027, 0o077, 0o007}[g.IntN(5)]
		if i == 0 {
			umask = 0o022
		}
		a.do(func() { unix.Umask(umask) })
	}
	var history []string
	for step := 1; step <= d.Steps; step++ {
		o := g.next()
		var got [2]string
		who[o.who].do(func() {
			for i, s := range sides {
				if err := unix.Fchdir(s.base); err != nil {
					got[i] = "no way in: " + outcome(err, "")
				} else {
					got[i] = o.kind.do(s, o)
				}
			}
		})
		if step == d.Corrupt {
			got[1] += " and more"
		}
		history = append(history, fmt.Sprintf("%d %v\n\t-> %s", step, o, got[0]))
		if got[0] == got[1] {
			got[0], got[1], err = probe(o, sides, store)
			if err != nil {
				return err
			}
		}
		if got[0] != got[1] && !known(d.Fstype, o, got[0], got[1]) {
			return fmt.Errorf("step %d, %v\nplain directory: %s\nmount:           %s\nbefore that:\n%s",
				step, o, got[0], got[1], strings.Join(related(history, o), "\n"))
		}
	}
	if len(os.Getenv("REPLFS_TRACE")) > 0 {
		fmt.Println(strings.Join(history, "\n"))
	}
	return nil
}

// probe looks at what an operation was about, as root: on both sides, and in
// the store behind the mount, which must have exactly what the mount shows.
func probe(o *op, sides [2]*side, store *side) (plain, mount string, err error) {
	var looks [2][]string
	var store0, mount1 string
	for i, s := range sides {
		for _, path := range []string{o.path, o.path2} {
			if path == "" {
				continue
			}
			var st, behind unix.Stat_t
			err := unix.Fstatat(s.base, path, &st, unix.AT_SYMLINK_NOFOLLOW)
			looks[i] = append(looks[i], outcome(err, "%s", show(&st)))
			if i == 1 && err == nil && store != nil {
				if err := unix.Fstatat(store.base, path, &behind, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					return "", "", fmt.Errorf("look into the store: %w", err)
				}
				store0, mount1 = store0+exact(&behind), mount1+exact(&st)
			}
		}
		var st unix.Stat_t
		if fd := s.fds[o.slot]; fd >= 0 && unix.Fstat(fd, &st) == nil {
			looks[i] = append(looks[i], show(&st))
		}
	}
	if store0 != mount1 {
		return "the store has " + store0, "the mount has " + mount1, nil
	}
	return fmt.Sprintf("afterwards %q", looks[0]), fmt.Sprintf("afterwards %q", looks[1]), nil
}

// exact is a stat with all but the device, and the atime and the blocks: the
// kernel may have
// older ones of these.
func exact(st *unix.Stat_t) string {
	c := *st
	c.Dev, c.Atim, c.Blocks = 0, unix.Timespec{}, 0
	return fmt.Sprintf("%+v", c)
}

// historyShown is how many operations a report goes back.
const historyShown = 400

// related are the last operations that may have to do with the last one.
func related(history []string, o *op) []string {
	return history[max(0, len(history)-1-historyShown) : len(history)-1]
}

func newSide(root string) (*side, error) {
	base, err := unix.Open(root+"/"+differDepth, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := &side{base: base}
	for i := range s.fds {
		s.fds[i] = -1
	}
	return s, nil
}

func (s *side) close() {
	for _, fd := range s.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	unix.Close(s.base)
}

// gen makes up operations.
type gen struct {
	*rand.Rand
	kinds  []*opKind
	total  int
	fstype string
	// last is a path used lately: what happens to one file is interesting.
	last string
}

func newGen(seed uint64, fstype string) *gen {
	g := &gen{fstype: fstype, Rand: rand.New(rand.NewPCG(seed, 0x66696465))}
	for _, ks := range [][]opKind{nameKinds, dataKinds, attrKinds} {
		for i := range ks {
			g.kinds = append(g.kinds, &ks[i])
			g.total += ks[i].weight
		}
	}
	return g
}

func (g *gen) next() *op {
	at := g.IntN(g.total)
	i := 0
	for at >= g.kinds[i].weight {
		at -= g.kinds[i].weight
		i++
	}
	o := &op{kind: g.kinds[i], who: pick(g, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6)}
	o.kind.gen(g, o)
	return o
}

func pick[T any](g *gen, of ...T) T { return of[g.IntN(len(of))] }

// some ors a random choice of bits.
func some(g *gen, chance float64, bits ...int) int {
	all := 0
	for _, b := range bits {
		if g.Float64() < chance {
			all |= b
		}
	}
	return all
}

// startDirs are made before a sequence begins.
var startDirs = []struct {
	name     string
	mode     uint32
	uid, gid int
	acl      bool
}{
	{"open", 0o777, 0, 0, false},
	{"sticky", 0o1777, 0, 0, false},
	{"setgid", 0o2777, 0, 4100, false},
	{"acl", 0o777, 4001, 4100, true},
	{"alice", 0o755, 4001, 4001, false},
	{"team", 0o2770, 4001, 4100, false},
	{"bob", 0o700, 4002, 4002, false},
}

var (
	longName    = strings.Repeat("n", 255)
	tooLongName = strings.Repeat("n", 256)
	names       = []string{"a", "b", "c", "d", "e"}
)

func (g *gen) component() string {
	if g.IntN(40) == 0 {
		return pick(g, longName, tooLongName, "\xff\xfe\x80", "\xc3\xa4 \n'", ".", "..", strings.Repeat("long/", 900))
	}
	return pick(g, names...)
}

// path is a path below a side's base; few names, so that they meet.
func (g *gen) path() string {
	if g.last != "" && g.IntN(3) == 0 {
		return g.last
	}
	var p string
	switch g.IntN(12) {
	case 0:
		p = startDirs[g.IntN(len(startDirs))].name
	case 1:
		p = g.component()
	default:
		p = startDirs[g.IntN(len(startDirs))].name + "/" + g.component()
		for g.IntN(4) == 0 {
			p += "/" + g.component()
		}
		if strings.Count(p, "/") == 1 {
			p = strings.TrimSuffix(p, "/..") // the base is to stay as it is
		}
	}
	if g.IntN(60) == 0 {
		p += "/"
	}
	if len(p) > 0 && p[0] == '.' {
		p = "open"
	}
	g.last = p
	return p
}

func (g *gen) perm() uint32 {
	return pick[uint32](g, 0o644, 0o666, 0o600, 0o777, 0o755, 0o6777, 0o2755, 0o4755, 0o2666, 0o2070, 0o1777, 0o2777, 0o000, 0o444, 0o6766)
}

// outcome says what a call returned: the error's name, or what is given.
func outcome(err error, format string, args ...any) string {
	var en unix.Errno
	if errors.As(err, &en) {
		return unix.ErrnoName(en)
	}
	if err != nil {
		return err.Error()
	}
	if format == "" {
		return "ok"
	}
	return fmt.Sprintf(format, args...)
}

// show is what a stat says, all that can be the same on both sides. Times that
// were set to a moment in the past count, others are just now.
func show(st *unix.Stat_t) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%o %d:%d nlink %d", st.Mode, st.Uid, st.Gid, st.Nlink)
	fmt.Fprintf(&b, " size %d mtime %s", st.Size, moment(st.Mtim))
	if st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFBLK {
		fmt.Fprintf(&b, " rdev %#x", st.Rdev)
	}
	return b.String()
}

func moment(ts unix.Timespec) string {
	if ts.Sec < 1_500_000_000 {
		return fmt.Sprintf("%d.%09d", ts.Sec, ts.Nsec)
	}
	return "now"
}

// retry repeats a call that a signal cut short: the runtime uses signals.
func retry(call func() error) error {
	for range 1000 {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return unix.EINTR
}

func sorted(list string) string {
	parts := strings.Split(strings.TrimSuffix(list, "\x00"), "\x00")
	slices.Sort(parts)
	return strings.Join(parts, ",")
}
