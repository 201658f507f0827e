package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/replfs/replfs/election"
	"github.com/replfs/replfs/internal/config"
	"github.com/replfs/replfs/internal/pki"
	"github.com/replfs/replfs/replicate"
	"github.com/replfs/replfs/replicate/wire"
)

const (
	// maxMessage holds a batch with its largest record.
	maxMessage   = 8 << 20
	window       = 8 << 20
	probeTimeout = 2 * time.Second
	// settleTimeout bounds the wait for a peer that is changing its role.
	settleTimeout = 5 * time.Second
)

// dial connects to a peer, whose certificate has to name it.
func (n *Node) dial(p config.Node) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if n.view.TLS != nil {
		tc, err := pki.ClientTLS(pki.Files(*n.view.TLS), n.view.Cluster, p.Name, p.Address)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(tc)
	}
	return grpc.NewClient("passthrough:///"+p.Address,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithWriteBufferSize(256<<10), grpc.WithReadBufferSize(256<<10),
		grpc.WithNoProxy(), wire.Dial(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)
}

func (n *Node) newServer() (*grpc.Server, error) {
	opts := []grpc.ServerOption{
		wire.Serve(),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.WriteBufferSize(256 << 10), grpc.ReadBufferSize(256 << 10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	}
	if n.view.TLS != nil {
		tc, err := pki.ServerTLS(pki.Files(*n.view.TLS), n.view.Cluster, n.cfg.HasNode)
		if err != nil {
			return nil, err
		}
		opts = append(opts, grpc.Creds(&loggedCreds{credentials.NewTLS(tc), n.log}))
	}
	return grpc.NewServer(opts...), nil
}

// loggedCreds logs who was turned away; the other side only gets an alert.
type loggedCreds struct {
	credentials.TransportCredentials
	log *zap.Logger
}

func (c *loggedCreds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	out, info, err := c.TransportCredentials.ServerHandshake(conn)
	if err != nil && !strings.HasSuffix(err.Error(), "EOF") {
		c.log.Warn("refused a connection", zap.Stringer("remote", conn.RemoteAddr()), zap.Error(err))
	}
	return out, info, err
}

func (c *loggedCreds) Clone() credentials.TransportCredentials {
	return &loggedCreds{c.TransportCredentials.Clone(), c.log}
}

// caller is the node that a request comes from, by its certificate; on an
// insecure connection by its word.
func (n *Node) caller(ctx context.Context, claimed *wire.Identity) (string, error) {
	name := claimed.GetNode()
	if n.view.TLS != nil {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return "", status.Error(codes.Unauthenticated, "no peer information")
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok {
			return "", status.Error(codes.Unauthenticated, "not a TLS connection")
		}
		_, certified, err := pki.PeerIdentity(info.State)
		if err != nil {
			return "", status.Error(codes.Unauthenticated, err.Error())
		}
		if name != certified {
			return "", status.Errorf(codes.PermissionDenied, "the certificate is that of %s, the message says %s", certified, name)
		}
	}
	for _, p := range n.view.Peers() {
		if p.Name == name {
			return name, nil
		}
	}
	return "", status.Errorf(codes.PermissionDenied, "%s is not a data node in the config of %s", name, n.view.Name)
}

// explain adds what to do about errors whose own words do not say.
func explain(err error) error {
	if err == nil {
		return nil
	}
	text := status.Convert(err).Message()
	switch {
	case strings.Contains(text, "remote error: tls"):
		return fmt.Errorf("%s (the peer refuses this node's certificate: its log says why)", text)
	case strings.Contains(text, "connection refused"):
		return fmt.Errorf("%s (is replfs running there?)", text)
	}
	return fmt.Errorf("%s", text)
}

// probe asks all other data nodes who they are.
func (n *Node) probe(ctx context.Context) []election.Peer {
	peers := n.view.Peers()
	out := make([]election.Peer, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			out[i] = n.probe1(ctx, p)
		}()
	}
	wg.Wait()
	return out
}

// probeSettled is probe for a node that starts: it waits, for a bounded time,
// for peers that are changing their role.
func (n *Node) probeSettled(ctx context.Context) []election.Peer {
	deadline := time.Now().Add(settleTimeout)
	for {
		peers := n.probe(ctx)
		if !slices.ContainsFunc(peers, func(p election.Peer) bool { return p.Err == nil && p.Starting }) ||
			time.Now().After(deadline) || ctx.Err() != nil {
			return peers
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (n *Node) probe1(ctx context.Context, p config.Node) election.Peer {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out := election.Peer{Name: p.Name}
	conn, err := n.dial(p)
	if err != nil {
		out.Err = err
		return out
	}
	defer conn.Close()
	st, err := wire.NewReplicationClient(conn).State(ctx, &wire.StateRequest{Caller: n.self()})
	if err == nil {
		err = replicate.CheckIdentity(n.identity(), st.GetIdentity(), p.Name)
	}
	if err != nil {
		out.Err = explain(err)
		switch status.Code(err) {
		case codes.PermissionDenied, codes.FailedPrecondition, codes.Unauthenticated, codes.Unknown:
			out.Refused = true
		default:
			out.Refused = strings.Contains(err.Error(), "handshake failed") && strings.Contains(err.Error(), "tls")
		}
		return out
	}
	out.Role = election.Standby
	switch st.GetRole() {
	case wire.Role_ROLE_PRIMARY:
		out.Role = election.Primary
	case wire.Role_ROLE_STANDBY:
	default:
		out.Starting = true
	}
	out.ClusterID, out.Epoch = st.GetIdentity().GetClusterId(), st.GetEpoch()
	// What it has received it would apply before it became primary.
	out.ReceivedEpoch, out.ReceivedLSN = st.GetReceived().GetEpoch(), st.GetReceived().GetLsn()
	out.Promotable = !st.GetCopying() && st.GetSuspect() == ""
	return out
}
