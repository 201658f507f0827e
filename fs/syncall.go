package fs

import (
	"fmt"
	"syscall"

	"github.com/replfs/replfs/replicate/record"
)

// AppendSync asks all standbys to make everything durable that the log has so far,
// and returns the LSN of the request. It changes nothing, but passes the gate as
// mutations do: a primary that hands over must be able to say where its log ends.
func (fs *FS) AppendSync() (lsn uint64, err error) {
	if s := fs.gate.pass(); !s.Ok() {
		return 0, fmt.Errorf("this node is no longer the primary: %w", syscall.Errno(s))
	}
	defer fs.gate.leave()
	r := fs.newRecord(record.OpSync)
	defer fs.putRecord(r)
	if lsn, err = fs.cfg.Log.Append(r, nil, nil); err != nil {
		return 0, fmt.Errorf("ask the standbys for a sync: %w", err)
	}
	return lsn, nil
}
