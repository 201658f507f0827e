package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// Everything that FS answers itself; the rest is ENOSYS from go-fuse's
// default, which the kernel then stops asking.
var _ interface {
	fuse.RawFileSystem
} = (*FS)(nil)
