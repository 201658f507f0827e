package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Mount is a mounted FS.
type Mount struct {
	fs    *FS
	srv   atomic.Pointer[fuse.Server]
	dev   *device
	opts  *fuse.MountOptions
	point string
	done  chan struct{}
	quit  chan struct{}
	// wantRO is what the kernel's ro flag should be; changed wakes the
	// goroutine that sees to it.
	wantRO  atomic.Bool
	changed chan struct{}
	flagMu  sync.Mutex
	// isRO is the flag as it was set last. inherited says that a predecessor
	// set it: a remount writes back dirty pages, which wait for the gate.
	isRO, inherited bool
}

// MountOptions shape the mount.
type MountOptions struct {
	// Source is what mount(8) shows in the first column.
	Source string
	// NonEmpty allows a mount point with something in it, which is hidden then.
	NonEmpty bool
	// trace gets a line for every request and for every reply, from go-fuse:
	// for tests.
	trace func(line string)
}

// Mount attaches the file system at point, read-only. A dead mount that an
// earlier process left there is detached first.
func (fs *FS) Mount(point string, o MountOptions) (*Mount, error) {
	if err := DetachStale(point, fs.log); err != nil {
		return nil, err
	}
	if err := checkMountpoint(point, o.NonEmpty); err != nil {
		return nil, err
	}
	opts := fs.serverOptions(o)
	fd, init, err := openDevice(point, opts)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", point, err)
	}
	srv, dev, err := attach(newFront(fs), fd, init, opts)
	if err == nil {
		err = dev.answerInit()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", point, err), unix.Unmount(point, unix.MNT_DETACH))
	}
	m := fs.newMount(dev, point)
	m.opts = opts
	m.serve(srv)
	m.wantRO.Store(true)
	if err := refusePoll(point); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", point, err), m.Unmount(0, true))
	}
	go m.keepFlag()
	m.SetReadOnlyFlag(true)
	return m, nil
}

// refusePoll polls once a file that go-fuse makes up, and answers ENOSYS for:
// the kernel asks no more. A Go program that opens a file polls it, in a way
// that stops its world; tests serve the mount that they open files in.
func refusePoll(point string) error {
	fd, err := unix.Open(filepath.Join(point, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("try the mount: %w", err)
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}, 0)
	return err
}

func (fs *FS) newMount(dev *device, point string) *Mount {
	return &Mount{
		fs: fs, dev: dev, point: point,
		done: make(chan struct{}), quit: make(chan struct{}), changed: make(chan struct{}, 1),
	}
}

// serve begins to answer requests.
func (m *Mount) serve(srv *fuse.Server) {
	m.srv.Store(srv)
	m.fs.srv.Store(srv)
	go func() {
		srv.Serve()
		if m.srv.Load() == srv { // not one that stopped for a successor
			close(m.done)
		}
	}()
}

// serverOptions are what is negotiated with the kernel.
func (fs *FS) serverOptions(o MountOptions) *fuse.MountOptions {
	if o.Source == "" {
		o.Source = "replfs"
	}
	// default_permissions, which openDevice sets, lets the kernel check
	// permissions and ACLs; the umask is ours because a default ACL takes its
	// place.
	return &fuse.MountOptions{
		FsName:                   o.Source,
		Name:                     "replfs",
		MaxWrite:                 1 << 20,
		MaxReadAhead:             1 << 20,
		MaxBackground:            64,
		EnableSymlinkCaching:     false,
		ExplicitDataCacheControl: true,
		EnableAcl:                true,
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DIRECT_IO_ALLOW_MMAP |
			fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_DONT_MASK |
			fuse.CAP_SETXATTR_EXT | fuse.CAP_HAS_RESEND,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_WRITEBACK_CACHE | fuse.CAP_NO_OPEN_SUPPORT,
		Logger:               fs.fuseLogger(o.trace),
		Debug:                o.trace != nil,
		PanicHandler: func(p any) fuse.Status {
			fs.log.Error("request handler panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			fs.cfg.Suspect(fmt.Sprintf("a request handler panicked: %v", p))
			return fuse.EIO
		},
	}
}

// Done is closed when the mount is gone, whoever unmounted it.
func (m *Mount) Done() <-chan struct{} { return m.done }

// SetReadOnlyFlag makes the kernel's flag follow the role: findmnt shows it.
// It takes effect as soon as no file is open for writing; the gate is what
// counts meanwhile.
func (m *Mount) SetReadOnlyFlag(ro bool) {
	m.wantRO.Store(ro)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *Mount) keepFlag() {
	settled := false
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.done:
			return
		case <-m.quit:
			return
		case <-m.changed:
		case <-tick.C:
			if settled {
				continue
			}
		}
		err := m.applyFlag()
		settled = !errors.Is(err, unix.EBUSY)
		if err != nil && settled {
			m.fs.log.Warn("cannot change the mount's read-only flag", zap.Bool("read_only", m.wantRO.Load()), zap.Error(err))
		}
	}
}

// applyFlag sets the flag that is wanted by now: no late one overtakes it.
func (m *Mount) applyFlag() error {
	m.flagMu.Lock()
	defer m.flagMu.Unlock()
	want := m.wantRO.Load()
	if m.inherited && m.isRO == want {
		m.inherited = false
		return nil
	}
	err := m.setFlag(want)
	if err == nil {
		m.isRO = want
	}
	return err
}

// setFlag uses the system call: mount(8) would look for a helper.
func (m *Mount) setFlag(ro bool) error {
	flags := uintptr(unix.MS_REMOUNT)
	if ro {
		flags |= unix.MS_RDONLY
	}
	return unix.Mount("none", m.point, "", flags, "")
}

// SetWritableFlag clears the kernel's flag at once; a promotion needs it
// before the gate opens.
func (m *Mount) SetWritableFlag() error {
	m.wantRO.Store(false)
	if err := m.applyFlag(); err != nil {
		return fmt.Errorf("remount %s read-write: %w", m.point, err)
	}
	return nil
}

// Unmount takes the mount away. If it is in use for longer than wait, nobody is
// served any more: whoever uses it gets errors from then on, and the dead mount
// stays, which is a *BusyError. With lazy it is detached instead, and what its
// users open by its path then is in the directory beneath.
func (m *Mount) Unmount(wait time.Duration, lazy bool) error {
	close(m.quit)
	for deadline := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Unmount(m.point, 0)
		if err == nil || errors.Is(err, unix.EINVAL) {
			<-m.done
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", m.point, err)
		}
		if time.Now().After(deadline) {
			return m.abandon(lazy)
		}
	}
}

// abandon ends the connection (MNT_FORCE): no request comes any more.
func (m *Mount) abandon(lazy bool) error {
	flags := unix.MNT_FORCE
	if lazy {
		m.fs.log.Warn("mount is in use; detaching it", zap.String("mount", m.point))
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(m.point, flags)
	if err != nil && (lazy || !errors.Is(err, unix.EBUSY)) {
		return fmt.Errorf("abandon the mount at %s: %w", m.point, err)
	}
	<-m.done
	if err != nil {
		return &BusyError{Mount: m.point, Users: users(m.point)}
	}
	return nil
}

// DetachStale detaches a mount whose daemon died ("Transport endpoint is not
// connected"). A live mount is an error.
func DetachStale(point string, log *zap.Logger) error {
	for range 16 {
		var st unix.Stat_t
		err := unix.Stat(point, &st)
		if err == nil {
			// The kernel may answer stat from its cache; this it has to ask.
			err = unix.Statfs(point, new(unix.Statfs_t))
		}
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			log.Info("detaching a dead mount", zap.String("mount", point))
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("detach the dead mount at %s: %w", point, err)
			}
			continue
		}
		if err != nil {
			if errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("mount point %s does not exist: create it with mkdir", point)
			}
			return fmt.Errorf("mount point %s: %w", point, err)
		}
		if t := mountedType(point); strings.HasPrefix(t, "fuse") {
			return fmt.Errorf("%s is already mounted (%s): is another replfs running?", point, t)
		}
		return nil
	}
	return fmt.Errorf("%s: more dead mounts than can be detached", point)
}

func mountedType(point string) string {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(point))
	if err != nil || len(infos) == 0 {
		return ""
	}
	return infos[0].FSType
}

// checkMountpoint refuses a directory with something in it: mounting would
// hide it, and it is most likely the data that should be adopted.
func checkMountpoint(point string, nonEmpty bool) error {
	ents, err := os.ReadDir(point)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if len(ents) > 0 && !nonEmpty {
		return fmt.Errorf("mount point %s is not empty (it has %q): move its content into the store first (or hide it with --nonempty)", point, ents[0].Name())
	}
	return nil
}
