package vip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// holderEnv makes the test binary a process that holds addresses, in the network
// that it is started in.
const holderEnv = "REPLFS_TEST_HOLDER"

// init keeps the main thread for the main goroutine: a thread that enters a
// namespace ends there, and the main thread would stay in it instead.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if text := os.Getenv(holderEnv); text != "" {
		if err := hold(text); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// holder is what a holding process is told.
type holder struct {
	Name      string
	Addresses []Address
	Lifetime  time.Duration
	Force     bool
	StateFile string
	// Keep what is there instead of removing it.
	Adopt bool
	// Recover only.
	Recover bool
}

// hold answers connections with its name, holds the addresses until SIGTERM, and
// says what happens, a line for each thing.
func hold(text string) error {
	var h holder
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, h.Name)
			c.Close()
		}
	}()
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	m := New(Config{Addresses: h.Addresses, Lifetime: h.Lifetime, Force: h.Force, StateFile: h.StateFile, Logger: zap.Must(zap.NewDevelopment())})
	start := m.Recover
	if h.Adopt {
		start = m.Adopt
	}
	if err := start(); err != nil {
		return err
	}
	fmt.Println("recovered, holding:", m.Held())
	if h.Recover {
		return nil
	}
	if err := m.Acquire(stop); err != nil {
		fmt.Println("not acquired:", err)
	}
	fmt.Println("acquired:", m.Held())
	for stop.Err() == nil {
		select {
		case <-stop.Done():
		case <-time.After(h.Lifetime / 8):
		}
		err := m.Renew(h.Lifetime)
		var lost *LostError
		if errors.As(err, &lost) {
			fmt.Printf("lost, expired: %t: %v\n", lost.Expired, err)
		} else if err != nil {
			return err
		}
	}
	err = m.Release()
	fmt.Println("released:", m.Held())
	return err
}
