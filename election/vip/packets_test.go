package vip

import (
	"bytes"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
)

func TestARP(t *testing.T) {
	p := arpPacket{
		op: arpReply, senderMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, tarMAC: ethernetBroadcast,
		senderAddr: netip.MustParseAddr("10.1.1.10"), tarAddr: netip.MustParseAddr("10.1.1.11"),
	}
	// As tcpdump shows such a packet.
	want := []byte{
		0, 1, 8, 0, 6, 4, 0, 2,
		2, 0, 0, 0, 0, 1, 10, 1, 1, 10,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 1, 1, 11,
	}
	if got := p.marshal(); !bytes.Equal(got, want) {
		t.Errorf("marshal:\n%x, want\n%x", got, want)
	}
	got, err := parseARP(append(want, make([]byte, 18)...)) // padding
	if err != nil || got.op != p.op || got.senderAddr != p.senderAddr || got.tarAddr != p.tarAddr ||
		got.senderMAC.String() != p.senderMAC.String() || got.tarMAC.String() != p.tarMAC.String() {
		t.Errorf("parse: %+v, %v", got, err)
	}
	for i := range 6 {
		bad := bytes.Clone(want)
		bad[i] ^= 0x40
		if _, err := parseARP(bad); err == nil {
			t.Errorf("a packet with another byte %d is taken", i)
		}
	}
}

func FuzzARP(f *testing.F) {
	f.Add(arpPacket{op: arpRequest, senderMAC: ethernetBroadcast, tarMAC: ethernetBroadcast,
		senderAddr: netip.IPv4Unspecified(), tarAddr: netip.IPv4Unspecified()}.marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseARP(b)
		if err != nil {
			return
		}
		if again := p.marshal(); !bytes.Equal(again, b[:arpSize]) {
			t.Errorf("%x became %x", b[:arpSize], again)
		}
	})
}

func FuzzOwned(f *testing.F) {
	f.Add([]byte(`{"addresses":[{"interface":"eth0","address":"10.1.1.10/24","marked":true}]}`))
	f.Add([]byte(`{"addresses":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseOwned(b)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "vip.json")
		if err := writeOwned(path, list); err != nil {
			t.Fatal(err)
		}
		again, err := readOwned(path)
		if err != nil || len(again) != len(list) {
			t.Fatalf("%v became %v, %v", list, again, err)
		}
		for i := range list {
			if list[i].Address != again[i].Address {
				t.Fatalf("%v became %v", list[i], again[i])
			}
		}
	})
}

func TestBroadcast(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.1.10/24": "10.1.1.255", "10.1.1.10/8": "10.255.255.255", "10.1.1.10/20": "10.1.15.255",
		"10.1.1.10/30": "10.1.1.11", "10.1.1.10/0": "255.255.255.255", "10.1.1.10/31": "", "10.1.1.10/32": "",
	} {
		got, ok := broadcast(netip.MustParsePrefix(in))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, %t, want %s", in, got, ok, want)
		}
	}
}
