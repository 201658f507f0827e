package fs

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// device is the open /dev/fuse of a mount with what was agreed on it. The
// kernel sends INIT once in a connection's life, so a process that takes the
// connection over repeats both messages to its server only.
type device struct {
	// fd is the descriptor that the server reads from.
	fd        int
	init      []byte
	initReply []byte
}

// initLimit is more than both messages need.
const initLimit = 8 << 10

// openDevice mounts at point and takes the kernel's INIT.
func openDevice(point string, o *fuse.MountOptions) (fd int, init []byte, err error) {
	var st unix.Stat_t
	if err := unix.Stat(point, &st); err != nil {
		return -1, nil, err
	}
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("open /dev/fuse: %w (try: modprobe fuse)", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d,default_permissions,allow_other",
		fd, st.Mode&unix.S_IFMT, o.MaxWrite)
	if err := unix.Mount(o.FsName, point, "fuse."+o.Name, 0, data); err != nil {
		return -1, nil, errors.Join(err, unix.Close(fd))
	}
	init = make([]byte, initLimit)
	n, err := unix.Read(fd, init)
	if err != nil {
		return -1, nil, errors.Join(fmt.Errorf("read INIT: %w", err), unix.Unmount(point, unix.MNT_DETACH), unix.Close(fd))
	}
	return fd, init[:n], nil
}

// attach makes a server that has been through INIT without the kernel: it
// reads the message from a socket, whose place the real device takes before
// the server reads on. The server owns d.fd from then on.
func attach(raw fuse.RawFileSystem, fd int, init []byte, o *fuse.MountOptions) (*fuse.Server, *device, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[1])
	if _, err := unix.Write(pair[1], init); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("repeat INIT: %w", err), unix.Close(pair[0]))
	}
	srv, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", pair[0]), o)
	if err != nil {
		return nil, nil, err // it has closed pair[0]
	}
	reply := make([]byte, initLimit)
	n, err := unix.Read(pair[1], reply)
	if err == nil {
		err = unix.Dup3(fd, pair[0], unix.O_CLOEXEC)
	}
	if err != nil {
		// The server finds the end of the socket and gives up its descriptor.
		_ = unix.Shutdown(pair[1], unix.SHUT_RDWR)
		srv.Serve()
		return nil, nil, fmt.Errorf("attach a server to the FUSE device: %w", err)
	}
	unix.Close(fd)
	return srv, &device{fd: pair[0], init: init, initReply: reply[:n]}, nil
}

// answerInit gives the kernel the server's reply, which opens the connection.
func (d *device) answerInit() error {
	if _, err := unix.Write(d.fd, d.initReply); err != nil {
		return fmt.Errorf("answer INIT: %w", err)
	}
	return nil
}

// agrees tells whether another server would have answered INIT the same.
func (d *device) agrees(reply []byte) bool { return bytes.Equal(d.initReply, reply) }

// canResend tells whether the kernel knows FUSE_NOTIFY_RESEND (Linux 6.9).
func (d *device) canResend() bool {
	if len(d.init) < int(unsafe.Offsetof(fuse.InitIn{}.Unused)) {
		return false
	}
	in := (*fuse.InitIn)(unsafe.Pointer(unsafe.SliceData(d.init)))
	return in.Flags64()&fuse.CAP_HAS_RESEND != 0
}

// resend has the kernel send every request again that was read and not
// answered, with uniqueResend set.
func (d *device) resend() error {
	out := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: -fuse.NOTIFY_RESEND}
	msg := unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out))
	if _, err := unix.Write(d.fd, msg); err != nil {
		return fmt.Errorf("ask the kernel to send unanswered requests again: %w", err)
	}
	return nil
}

// uniqueResend marks a request that was sent before (FUSE_UNIQUE_RESEND).
const uniqueResend = 1 << 63
