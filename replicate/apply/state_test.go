package apply

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (r *rig) suspect(want string) {
	r.t.Helper()
	got := r.a.State().Suspect
	if want == "" && got != "" || !strings.Contains(got, want) {
		r.t.Fatalf("suspect %q, want %q", got, want)
	}
}

func TestFreshState(t *testing.T) {
	r := tempRig(t)
	if s := r.a.State(); s != (State{Fresh: true}) {
		t.Errorf("state %+v", s)
	}
	r.reopen()
	if s := r.a.State(); s != (State{Fresh: true}) {
		t.Errorf("state %+v after a kill", s)
	}
}

func TestStateSurvivesKill(t *testing.T) {
	r := tempRig(t)
	r.p.epoch = 7
	r.p.create("f", 0o644)
	r.p.create("g", 0o644)
	r.catchUp()
	r.p.must(r.a.SetInSync(true))
	want := State{Applied: 2, Epoch: 7, Durable: 2, InSync: true}
	r.reopen()
	if s := r.a.State(); s != want {
		t.Errorf("state %+v, want %+v", s, want)
	}
	r.p.must(r.a.MarkSuspect("a reason"))
	want.Suspect, want.InSync = "a reason", false
	r.reopen()
	if s := r.a.State(); s != want {
		t.Errorf("state %+v, want %+v", s, want)
	}
}

func TestMachineRestart(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.catchUp()
	r.p.must(r.a.SetInSync(true))

	r.p.must(r.a.Close())
	r.cfg.BootID = "boot-2"
	r.open()
	if s := r.a.State(); s.Suspect != "" || !s.InSync || s.Applied != 1 || s.Durable != 1 {
		t.Fatalf("state %+v after a clean stop", s)
	}

	// Opening alone makes the stop before it count no more.
	r.crash()
	r.cfg.BootID = "boot-3"
	r.open()
	r.suspect("machine restarted without a clean stop")
	if r.a.State().InSync {
		t.Error("suspect, but in sync")
	}

	// Being suspect outlasts a clean stop, until someone decides.
	r.restart()
	r.suspect("machine restarted")
	r.p.create("g", 0o644)
	r.catchUp()
	if d := r.a.Durable(); d != 1 {
		t.Errorf("durable to %d although suspect", d)
	}
	r.p.must(r.a.ClearSuspect())
	r.p.must(r.a.Flush(context.Background()))
	r.suspect("")
	if d := r.a.Durable(); d != 2 {
		t.Errorf("durable to %d, want 2", d)
	}
}

func TestAnotherStore(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.catchUp()
	r.p.must(r.a.Close())
	r.cfg.Store = t.TempDir()
	r.open()
	r.suspect("another directory")
}

func TestDamagedState(t *testing.T) {
	damage := map[string]func(b []byte) []byte{
		"short":    func(b []byte) []byte { return b[:100] },
		"long":     func(b []byte) []byte { return append(b, 0) },
		"empty":    func([]byte) []byte { return nil },
		"position": func(b []byte) []byte { b[offPosition] ^= 1; b[offPosition+positionSize] ^= 1; return b },
		"select":   func(b []byte) []byte { b[offSelect] = 2; return b },
		"durable":  func(b []byte) []byte { b[offDurable+2] = 1; return b },
		"meta":     func(b []byte) []byte { b[offMeta+9] ^= 1; b[offMeta+metaSize+9] ^= 1; return b },
		"zeros":    func(b []byte) []byte { clear(b[len(stateMagic)+8:]); return b },
	}
	for name, change := range damage {
		t.Run(name, func(t *testing.T) {
			r := tempRig(t)
			r.p.create("f", 0o644)
			r.catchUp()
			r.p.must(r.a.Close())
			b, err := os.ReadFile(r.cfg.StateFile)
			r.p.must(err)
			r.p.must(os.WriteFile(r.cfg.StateFile, change(b), 0o600))
			r.open()
			r.suspect("corrupt state file")
			if s := r.a.State(); s.Applied != 0 {
				t.Errorf("state %+v from a damaged file", s)
			}
			kept, err := filepath.Glob(r.cfg.StateFile + ".damaged-*")
			if err != nil || len(kept) != 1 {
				t.Errorf("kept %v, %v", kept, err)
			}
			r.reopen()
			r.suspect("corrupt state file")
		})
	}
}

// A kill while the rarely changing part is written leaves what it was before.
func TestTornMeta(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.catchUp()
	seq := r.a.st.meta.seq
	r.p.must(r.a.MarkSuspect("torn"))
	r.a.st.mem[offMeta+int((seq+1)%2)*metaSize+20] ^= 0xff
	r.reopen()
	r.suspect("")
	if s := r.a.State(); s.Applied != 1 {
		t.Errorf("state %+v", s)
	}
}

func TestUnusableStateFile(t *testing.T) {
	r := tempRig(t)
	if _, err := Open(r.cfg); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	c := r.cfg
	c.StateFile = filepath.Join(t.TempDir(), "passwd")
	text := []byte("root:x:0:0\n")
	r.p.must(os.WriteFile(c.StateFile, text, 0o600))
	if _, err := Open(c); !errors.Is(err, ErrForeign) {
		t.Errorf("opened a foreign file: %v", err)
	}
	if b, err := os.ReadFile(c.StateFile); err != nil || string(b) != string(text) {
		t.Errorf("the foreign file became %q, %v", b, err)
	}
	c.StateFile = filepath.Join(t.TempDir(), "missing", "state")
	if _, err := Open(c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened without a directory: %v", err)
	}
	c.StateFile, c.Store = filepath.Join(t.TempDir(), "state"), "/nonexistent"
	if _, err := Open(c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened without a store: %v", err)
	}
}

func TestSetApplied(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.p.write("f", []byte("as standby"), 0)
	r.catchUp()

	// As primary others write to the store, and use its file ids.
	r.p.must(os.Rename(filepath.Join(r.cfg.Store, "f"), filepath.Join(r.cfg.Store, "g")))
	r.p.must(os.Rename(r.p.at("f"), r.p.at("g")))
	r.p.must(os.WriteFile(filepath.Join(r.cfg.Store, "f"), nil, 0o600))
	r.p.must(os.WriteFile(r.p.at("f"), nil, 0o600))
	r.p.must(r.a.SetApplied(100, 1))
	r.p.must(r.a.Flush(context.Background()))
	if s := r.a.State(); s != (State{Applied: 100, Epoch: 1, Durable: 100}) {
		t.Errorf("state %+v", s)
	}
	r.p.lsn, r.p.log = 100, nil
	id := r.p.idOf("g")
	w := r.p.write("f", []byte("new"), 0)
	w.FileID = id // what it was on the old primary
	r.p.must(unix.Chmod(r.p.at("g"), 0o600))
	r.p.must(unix.Chmod(filepath.Join(r.cfg.Store, "g"), 0o600))
	r.catchUp()
	if got := r.read("f"); got != "new" {
		t.Errorf("f is %q", got)
	}

	// And backwards.
	r.p.must(r.a.SetApplied(50, 1))
	if s := r.a.State(); s.Applied != 50 || s.Durable > 50 {
		t.Errorf("state %+v", s)
	}
	r.reopen()
	if s := r.a.State(); s.Applied != 50 || s.Durable > 50 {
		t.Errorf("state %+v after a kill", s)
	}
	r.p.must(r.a.BeginFresh(70, 3))
	if s := r.a.State(); s != (State{Applied: 70, Epoch: 3, Durable: 70, Fresh: true}) {
		t.Errorf("state %+v", s)
	}
}

func TestUseAfterClose(t *testing.T) {
	r := tempRig(t)
	r.p.create("f", 0o644)
	r.catchUp()
	r.p.must(r.a.Close())
	if s := r.a.State(); s.Applied != 1 || s.Durable != 1 {
		t.Errorf("state %+v", s)
	}
	r.p.create("g", 0o644)
	for name, err := range map[string]error{
		"Apply": r.a.Apply(r.p.log[1]), "SetInSync": r.a.SetInSync(true), "SetApplied": r.a.SetApplied(1, 1),
		"ClearSuspect": r.a.ClearSuspect(), "MarkSuspect": r.a.MarkSuspect("x"), "Sync": r.a.Sync(context.Background()),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.p.must(r.a.Close())
}

// Readers may ask at any time, also while the applier is closed.
func TestConcurrentReaders(t *testing.T) {
	r := tempRig(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		var last State
		for {
			s := r.a.State()
			if s.Durable > s.Applied || s.Applied < last.Applied || s.Durable < last.Durable {
				t.Errorf("state %+v after %+v", s, last)
				return
			}
			last = s
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	r.p.create("f", 0o644)
	for range 300 {
		r.p.write("f", []byte("x"), 0)
		r.p.fsync("f", 0)
	}
	for _, rec := range r.p.log {
		r.apply(rec)
	}
	time.Sleep(time.Millisecond)
	r.p.must(r.a.Close())
	close(stop)
	<-stopped
}
