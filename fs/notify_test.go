package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inotifyEvents drains an inotify descriptor.
func inotifyEvents(t testing.TB, fd int) string {
	t.Helper()
	var out []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return strings.Join(out, "\n")
		}
		must(t, err)
		for at := 0; at < n; {
			ev := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
			name, _, _ := strings.Cut(string(buf[at+unix.SizeofInotifyEvent:][:ev.Len]), "\x00")
			out = append(out, fmt.Sprintf("%s %#x", name, ev.Mask))
			at += unix.SizeofInotifyEvent + int(ev.Len)
		}
	}
}

// TestInotify: a watch in the mount hears of what is done through the mount, in
// the same words as in a plain directory.
func TestInotify(t *testing.T) {
	e := newEnv(t, options{})
	native := e.path("native")
	must(t, os.Mkdir(native, 0o755))
	var got [2]string
	for i, dir := range []string{native, e.mnt} {
		fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		must(t, err)
		must(t, os.Mkdir(dir+"/d", 0o755))
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_ALL_EVENTS)
		must(t, err)
		_, err = unix.InotifyAddWatch(fd, dir+"/d", unix.IN_ALL_EVENTS)
		must(t, err)
		must(t, os.WriteFile(dir+"/f", []byte("content"), 0o644))
		must(t, os.Chmod(dir+"/f", 0o600))
		must(t, os.Truncate(dir+"/f", 3))
		must(t, os.Rename(dir+"/f", dir+"/g"))
		must(t, os.Link(dir+"/g", dir+"/d/h"))
		must(t, os.Rename(dir+"/g", dir+"/d/h2"))
		must(t, unix.Setxattr(dir+"/d/h2", "user.a", nil, 0))
		_, err = os.ReadFile(dir + "/d/h2")
		must(t, err)
		must(t, os.Remove(dir+"/d/h"))
		must(t, os.Remove(dir+"/d/h2"))
		must(t, os.Remove(dir+"/d"))
		got[i] = inotifyEvents(t, fd)
		must(t, unix.Close(fd))
	}
	if got[0] != got[1] || !strings.Contains(got[0], "h2 0x80") {
		t.Errorf("plain directory:\n%s\n\nmount:\n%s", got[0], got[1])
	}
	e.equal()
}

// TestFanotify: a mark on the mount hears of every file below it. Events that
// carry file handles are a known difference.
func TestFanotify(t *testing.T) {
	e := newEnv(t, options{})
	must(t, os.Mkdir(e.in("d"), 0o755))
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_NONBLOCK|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel has no fanotify")
	}
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, e.mnt))
	must(t, os.WriteFile(e.in("d/f"), []byte("content"), 0o644))
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	must(t, err)
	var seen uint64
	for at := 0; at < n; {
		ev := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&buf[at]))
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ev.Fd))
		must(t, errors.Join(err, unix.Close(int(ev.Fd))))
		if path != e.in("d/f") {
			t.Errorf("event %#x of %s", ev.Mask, path)
		}
		seen |= ev.Mask
		at += int(ev.Event_len)
	}
	if seen != unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE {
		t.Errorf("events %#x", seen)
	}
	e.equal()
}
