package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
)

var errNotExist = fs.ErrNotExist

// sealName is the file that says that all segments were made durable. One
// boot of the machine believes the journal of another only with it.
const sealName = "sealed"

// seal names the end of what is durable.
type seal struct {
	Cluster string `json:"cluster"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	// TailSize is the size of the last segment's file.
	TailSize int64 `json:"tail_size"`
}

// maxSeal bounds the file.
const maxSeal = 4096

func (s seal) encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s\n%08x\n", b, crc32.Checksum(b, castagnoli)), nil
}

func decodeSeal(b []byte) (seal, error) {
	var s seal
	body, sum, ok := bytes.Cut(b, []byte("\n"))
	var crc uint32
	if !ok {
		return s, errors.New("no checksum")
	}
	if _, err := fmt.Sscanf(string(sum), "%08x", &crc); err != nil {
		return s, fmt.Errorf("no checksum: %w", err)
	}
	if got := crc32.Checksum(body, castagnoli); got != crc {
		return s, fmt.Errorf("checksum %08x, should be %08x", crc, got)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return seal{}, err
	}
	return s, nil
}

// Seal makes the journal durable and says so in it, so that it outlives the
// machine's boot. Nothing may be appended after it until it is opened again.
func (j *Journal) Seal() error {
	j.mu.Lock()
	segs := append([]*segment(nil), j.segs...)
	s := seal{Cluster: j.o.Cluster, Last: j.last}
	j.mu.Unlock()
	if len(segs) == 0 {
		return nil
	}
	s.First, s.TailSize = segs[0].first, segs[len(segs)-1].size
	for _, g := range segs {
		if err := j.syncFile(g.path); err != nil {
			return ioError(err, "sync %s", g.path)
		}
	}
	if err := j.os.SyncDir(j.dir); err != nil {
		return ioError(err, "sync %s", j.dir)
	}
	b, err := s.encode()
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, sealName)
	if err := j.os.Remove(path); err != nil && !errors.Is(err, errNotExist) {
		return ioError(err, "replace %s", path)
	}
	f, err := j.os.Create(path)
	if err != nil {
		return ioError(err, "make %s", path)
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return ioError(err, "write %s", path)
	}
	if err := j.os.SyncDir(j.dir); err != nil {
		return ioError(err, "sync %s", j.dir)
	}
	return nil
}

func (j *Journal) syncFile(path string) error {
	f, err := j.os.Open(path, true)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readSeal gives what the seal says, nil without one.
func (j *Journal) readSeal() (*seal, error) {
	f, err := j.os.Open(filepath.Join(j.dir, sealName), false)
	if errors.Is(err, errNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(size, maxSeal))
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return nil, err
	}
	s, err := decodeSeal(b)
	if err != nil {
		return nil, err
	}
	return &s, nil
}
