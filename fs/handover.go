package fs

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// HandoverFormat is the version of what a process leaves to its successor. It
// changes with the meaning of anything in the handover types, and with the
// negotiated options.
const HandoverFormat = 1

// handover is everything that a successor needs to go on serving the
// connection: descriptors are numbers that both processes have open.
type handover struct {
	Format          int
	Device          int
	Init, InitReply []byte
	Root            storeKey
	// ReadOnly is the kernel's flag, Writable what the gate said.
	ReadOnly, Writable bool
	NextInode          uint64
	NextHandle         uint64
	Role               uint64
	// Generation goes with the node ids.
	Generation uint32
	Inodes     []inodeState
	Handles    []handleState
	Outcomes   map[uint64]carriedOut
}

type storeKey struct{ Dev, Ino uint64 }

func exportKey(k inodeKey) storeKey { return storeKey{k.dev, k.ino} }

func (k storeKey) key() inodeKey { return inodeKey{k.Dev, k.Ino} }

// inodeState is an inode but for what follows from the others.
type inodeState struct {
	ID      uint64
	Key     storeKey
	Type    uint32
	Fd      int
	Ghost   int
	Lookups uint64
	Names   []nameState
	Last    *unix.Stat_t
	Role    uint64
	// Lost: the store may use its number for another file by now.
	Lost bool
}

type nameState struct {
	Dir  uint64
	Name string
}

type handleState struct {
	ID, Inode        uint64
	Fd               int
	Writable, Direct bool
	Dir              bool
}

// ErrCannotResume says that the mount cannot pass to another process here.
var ErrCannotResume = errors.New("this kernel cannot send unanswered requests again (Linux 6.9 can)")

// HandOver stops all work on the mount and calls pass with what a successor
// needs: its state, and the descriptors that have to stay open at their
// numbers. pass does not return if the successor takes this process's place.
// When it does, with an error, the work goes on as before.
//
// Requests that were not answered, those that wait for the gate among them,
// the kernel sends again to the successor.
func (m *Mount) HandOver(pass func(state []byte, fds []int) error) error {
	if !m.dev.canResend() {
		return ErrCannotResume
	}
	fs := m.fs
	m.flagMu.Lock() // a remount may wait for mutations
	defer m.flagMu.Unlock()
	was := fs.gate.freeze()
	defer fs.gate.set(was)
	// A mutation may be recorded and its reply not written yet. The successor
	// could answer it as well, but why should it.
	time.Sleep(handoverGrace)
	fs.tree.Lock()
	defer fs.tree.Unlock()
	fs.handles.mu.Lock()
	defer fs.handles.mu.Unlock()
	fs.table.mu.Lock()
	defer fs.table.mu.Unlock()

	h := handover{
		Format: HandoverFormat,
		Device: m.dev.fd, Init: m.dev.init, InitReply: m.dev.initReply,
		Root: exportKey(fs.table.root.key), ReadOnly: m.isRO, Writable: was == gateOpen,
		NextInode: fs.table.next, NextHandle: fs.handles.next, Role: fs.role.Load(), Generation: fs.generation,
		Outcomes: fs.completed.outcomes(),
	}
	fds := []int{m.dev.fd}
	for _, n := range fs.table.byID {
		s := inodeState{
			ID: n.id, Key: exportKey(n.key), Type: n.typ, Fd: -1, Ghost: n.ghost, Lookups: n.lookups,
			Last: n.last, Role: n.role, Lost: fs.table.byKey[n.key] != n,
		}
		for _, dn := range n.names {
			s.Names = append(s.Names, nameState{dn.dir.id, dn.name})
		}
		if fd := n.dir.num.Load(); fd != 0 && n != fs.table.root { // every process opens the store itself
			s.Fd = int(fd)
		}
		h.Inodes = append(h.Inodes, s)
		for _, fd := range []int{s.Fd, s.Ghost} {
			if fd >= 0 {
				fds = append(fds, fd)
			}
		}
	}
	for _, o := range fs.handles.m {
		h.Handles = append(h.Handles, handleState{
			ID: o.id, Inode: o.inode.id, Fd: o.fd, Writable: o.writable, Direct: o.direct, Dir: o.dir != nil,
		})
		fds = append(fds, o.fd)
	}
	fd, err := m.stopReading()
	if err != nil {
		return err
	}
	h.Device, fds[0] = fd, fd
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(&h); err != nil {
		return errors.Join(fmt.Errorf("describe the mount to a successor: %w", err), m.readOn(fd))
	}
	err = pass(buf.Bytes(), fds)
	return errors.Join(err, m.readOn(fd))
}

// handoverGrace is time for replies that are being written.
const handoverGrace = 5 * time.Millisecond

// freeze holds mutations back whatever the gate's state, and returns that.
func (g *gate) freeze() gateState {
	g.mu.Lock()
	was := g.state
	g.mu.Unlock()
	g.set(gateFrozen)
	return was
}

// Resume takes over the mount at point from the process that made state with
// HandOver. Until SetWritable or SetReadOnly decide, mutations wait.
func (fs *FS) Resume(point string, state []byte, o MountOptions) (*Mount, error) {
	var h handover
	if err := gob.NewDecoder(bytes.NewReader(state)).Decode(&h); err != nil {
		return nil, fmt.Errorf("take over %s: read what the predecessor left: %w", point, err)
	}
	if h.Format != HandoverFormat {
		return nil, fmt.Errorf("take over %s: the predecessor wrote format %d, this version knows %d", point, h.Format, HandoverFormat)
	}
	unix.CloseOnExec(h.Device)
	for i := range h.Inodes {
		closeOnExec(h.Inodes[i].Fd)
		closeOnExec(h.Inodes[i].Ghost)
	}
	for i := range h.Handles {
		closeOnExec(h.Handles[i].Fd)
	}
	if h.Root.key() != fs.table.root.key {
		return nil, fmt.Errorf("take over %s: the store is another directory than the predecessor's", point)
	}
	fs.gate.set(gateFrozen)
	if err := fs.restore(&h); err != nil {
		return nil, fmt.Errorf("take over %s: %w", point, err)
	}
	if err := unix.SetNonblock(h.Device, false); err != nil {
		return nil, fmt.Errorf("take over %s: %w", point, err)
	}
	opts := fs.serverOptions(o)
	srv, dev, err := attach(newFront(fs), h.Device, h.Init, opts)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", point, err)
	}
	// Before the first request is read: what this process reads must not come
	// again as well.
	resendErr := dev.resend()
	m := fs.newMount(dev, point)
	m.opts = opts
	m.serve(srv)
	m.isRO, m.inherited = h.ReadOnly, true
	m.wantRO.Store(h.ReadOnly)
	go m.keepFlag()
	if !dev.agrees(h.InitReply) {
		return nil, errors.Join(fmt.Errorf("take over %s: this version would have agreed with the kernel on other options", point), m.Unmount(0, true))
	}
	if resendErr != nil {
		return nil, errors.Join(fmt.Errorf("take over %s: %w", point, resendErr), m.Unmount(0, true))
	}
	return m, nil
}

func closeOnExec(fd int) {
	if fd >= 0 {
		unix.CloseOnExec(fd)
	}
}

// restore fills the tables with what the predecessor had in its own.
func (fs *FS) restore(h *handover) error {
	t := &fs.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range h.Inodes {
		s := &h.Inodes[i]
		n := t.root
		if s.ID != rootID {
			n = &inode{id: s.ID, key: s.Key.key(), typ: s.Type, ghost: s.Ghost, lookups: s.Lookups, last: s.Last}
			t.byID[s.ID] = n
			if !s.Lost {
				t.byKey[n.key] = n
			}
			if s.Fd >= 0 {
				n.dir.num.Store(int32(s.Fd))
				t.dirs.open = append(t.dirs.open, n)
				t.dirs.count++
			}
		}
		n.role = s.Role
	}
	for i := range h.Inodes {
		s := &h.Inodes[i]
		for _, name := range s.Names {
			dir := t.byID[name.Dir]
			if dir == nil || !dir.isDir() {
				return fmt.Errorf("%q lies in a directory %d that is not there", name.Name, name.Dir)
			}
			t.addName(t.byID[s.ID], dir, name.Name)
		}
	}
	t.next, t.peak = h.NextInode, len(t.byID)
	fs.role.Store(h.Role)
	fs.generation = h.Generation
	fs.handles.mu.Lock()
	for i := range h.Handles {
		s := &h.Handles[i]
		n := t.byID[s.Inode]
		if n == nil {
			fs.handles.mu.Unlock()
			return fmt.Errorf("handle %d is of an inode %d that is not there", s.ID, s.Inode)
		}
		o := &handle{id: s.ID, inode: n, fd: s.Fd, writable: s.Writable, direct: s.Direct}
		if s.Dir {
			o.dir = &dirStream{pos: -1} // the descriptor stands somewhere
		}
		fs.handles.m[s.ID] = o
		n.handles = append(n.handles, o)
	}
	fs.handles.next = h.NextHandle
	fs.handles.mu.Unlock()
	// What only the predecessor itself referred to is not needed any more.
	for _, n := range slices.Collect(maps.Values(t.byID)) {
		t.reap(n)
	}
	// Whoever comes next may get these requests as well.
	for unique, o := range h.Outcomes {
		fs.completed.note(unique, o.File, int(o.Size))
	}
	fs.inherited.Store(&h.Outcomes)
	if h.Writable {
		fs.unbroken.Store(true)
		fs.ttl.Store(int64(primaryTTL))
	}
	return nil
}
