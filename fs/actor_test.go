package fs

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identity is what an actor runs as. Files and descriptors are shared with the
// other actors of the process, credentials, umask and working directory not.
type identity struct {
	name     string
	uid, gid int
	groups   []uint32
	// caps are kept when root is given up; drop is taken from root.
	caps, drop []uintptr
}

// actors are those who may meet in a directory of GitLab's, and who the kernel
// treats in a way of their own.
var actors = []identity{
	{name: "root"},
	{name: "alice", uid: 4001, gid: 4001, groups: []uint32{4001, 4100, 4200}},
	{name: "bob", uid: 4002, gid: 4002, groups: []uint32{4002}},
	{name: "carol", uid: 4003, gid: 4100},
	{name: "dave", uid: 4004, gid: 4004},
	{name: "keeper", uid: 4005, gid: 4005, caps: []uintptr{unix.CAP_FOWNER, unix.CAP_FSETID}},
	{name: "lessroot", drop: []uintptr{unix.CAP_FSETID, unix.CAP_SYS_ADMIN}},
}

// actor is a thread that has an identity.
type actor struct {
	identity
	jobs chan func()
}

// startActor makes the thread; stop ends it.
func startActor(who identity) (*actor, error) {
	a := &actor{identity: who, jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its credentials
		if err := a.become(); err != nil {
			ready <- fmt.Errorf("become %s: %w", who.name, err)
			return
		}
		ready <- nil
		for job := range a.jobs {
			job()
		}
	}()
	return a, <-ready
}

func (a *actor) stop() { close(a.jobs) }

// do runs f as the actor and waits for it.
func (a *actor) do(f func()) {
	done := make(chan struct{})
	a.jobs <- func() { f(); close(done) }
	<-done
}

// become uses the system calls themselves: the library's change every thread.
func (a *actor) become() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	var groups unsafe.Pointer
	if len(a.groups) > 0 {
		groups = unsafe.Pointer(&a.groups[0])
	}
	for _, call := range [][4]uintptr{
		{unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1},
		{unix.SYS_SETGROUPS, uintptr(len(a.groups)), uintptr(groups)},
		{unix.SYS_SETRESGID, uintptr(a.gid), uintptr(a.gid), uintptr(a.gid)},
		{unix.SYS_SETRESUID, uintptr(a.uid), uintptr(a.uid), uintptr(a.uid)},
	} {
		if _, _, en := unix.RawSyscall(call[0], call[1], call[2], call[3]); en != 0 {
			return en
		}
	}
	return a.setCaps()
}

func (a *actor) setCaps() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	var keep [2]uint32
	if a.uid == 0 {
		keep = [2]uint32{data[0].Permitted, data[1].Permitted}
	}
	for _, c := range a.caps {
		keep[c/32] |= 1 << (c % 32)
	}
	for _, c := range a.drop {
		keep[c/32] &^= 1 << (c % 32)
	}
	for i := range data {
		data[i] = unix.CapUserData{Effective: keep[i], Permitted: keep[i]}
	}
	return unix.Capset(&header, &data[0])
}
