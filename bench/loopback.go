package bench

import (
	"context"
	"fmt"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// ServeLoopback serves go-fuse's loopback file system until ctx ends, with the
// options of its example/loopback -allow-other. Without passthrough the kernel
// sends it every read and write, instead of going to the store by itself.
func ServeLoopback(ctx context.Context, store, point string, passthrough bool) error {
	root, err := fusefs.NewLoopbackRoot(store)
	if err != nil {
		return fmt.Errorf("open %s: %w", store, err)
	}
	sec := time.Second
	opts := &fusefs.Options{
		AttrTimeout: &sec, EntryTimeout: &sec,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther: true, DirectMount: true,
			FsName: store, Name: "loopback",
			Options: []string{"default_permissions"},
		},
	}
	if !passthrough {
		opts.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	}
	srv, err := fusefs.Mount(point, root, opts)
	if err != nil {
		return fmt.Errorf("mount %s: %w", point, err)
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stopped <- srv.Unmount()
	}()
	srv.Wait()
	if ctx.Err() == nil {
		return fmt.Errorf("somebody unmounted %s", point)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	return nil
}
