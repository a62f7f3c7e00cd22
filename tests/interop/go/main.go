// A go-libp2p peer for swarmnode's tests and benchmarks: it listens or dials, and says what happens in lines of JSON.
//
//	peer listen ADDR            {"event":"listening","peer":…,"addrs":[…]}; serves echo, half and bench until stdin ends
//	peer dial ADDR              identify, ping, echo of 5 MiB, half-close; one line for each, {"event":"done"} at the end
//	peer bench ADDR CONNECTS OPENS BULK_BYTES [MESSAGE_BYTES ROUNDS]…   figures, to another such peer
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

const (
	echoID    = protocol.ID("/swarmnode/interop/echo/1")
	halfID    = protocol.ID("/swarmnode/interop/half/1")
	echoBytes = 5 << 20
	patience  = 30 * time.Second
)

func say(event string, fields map[string]any) {
	line := map[string]any{"event": event}
	for name, value := range fields {
		line[name] = value
	}
	out, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(out))
}

func fail(what string, err error) {
	say("failed", map[string]any{"what": what, "why": err.Error()})
	os.Exit(1)
}

// newHost speaks QUIC v1 and TCP with noise and yamux, nothing else: what is tested is what we claim to speak.
func newHost(listen ...string) host.Host {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		fail("key", err)
	}
	options := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.Transport(libp2pquic.NewTransport),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.QUICReuse(quicreuse.NewConnManager),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
	}
	if len(listen) > 0 {
		options = append(options, libp2p.ListenAddrStrings(listen...))
	} else {
		options = append(options, libp2p.NoListenAddrs)
	}
	opened, err := libp2p.New(options...)
	if err != nil {
		fail("host", err)
	}
	return opened
}

// echo sends back what comes while it comes, and ends when the other end has.
func echo(stream network.Stream) {
	defer stream.Close()
	if _, err := io.Copy(stream, stream); err != nil {
		stream.Reset()
	}
}

// half waits for the end of what is sent, then answers with how much it was and the same bytes backwards.
func half(stream network.Stream) {
	defer stream.Close()
	taken, err := io.ReadAll(io.LimitReader(stream, 2*echoBytes))
	if err != nil {
		stream.Reset()
		return
	}
	for i, j := 0, len(taken)-1; i < j; i, j = i+1, j-1 {
		taken[i], taken[j] = taken[j], taken[i]
	}
	if _, err := fmt.Fprintf(stream, "%d\n", len(taken)); err == nil {
		_, err = stream.Write(taken)
	}
	if err != nil {
		stream.Reset()
	}
}

func listen(addr string) {
	opened := newHost(addr)
	defer opened.Close()
	opened.SetStreamHandler(echoID, echo)
	opened.SetStreamHandler(halfID, half)
	serveBench(opened)
	opened.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		state := c.ConnState()
		say("connected", map[string]any{"peer": c.RemotePeer().String(), "transport": state.Transport,
			"security": string(state.Security), "muxer": string(state.StreamMultiplexer)})
	}})
	addrs := []string{}
	for _, each := range opened.Addrs() {
		addrs = append(addrs, each.String()+"/p2p/"+opened.ID().String())
	}
	say("listening", map[string]any{"peer": opened.ID().String(), "addrs": addrs})
	io.Copy(io.Discard, os.Stdin)
}

func connect(ctx context.Context, opened host.Host, addr string) peer.ID {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		fail("address", err)
	}
	if err := opened.Connect(ctx, *info); err != nil {
		fail("connect", err)
	}
	return info.ID
}

func dial(addr string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	opened := newHost()
	defer opened.Close()
	other := connect(ctx, opened, addr)
	conns := opened.Network().ConnsToPeer(other)
	if len(conns) == 0 {
		fail("connect", errors.New("the other end has hung up"))
	}
	state := conns[0].ConnState()
	say("connected", map[string]any{"peer": other.String(), "transport": state.Transport,
		"security": string(state.Security), "muxer": string(state.StreamMultiplexer)})

	// Connect returns once identify is over.
	protocols, err := opened.Peerstore().GetProtocols(other)
	if err != nil {
		fail("identify", err)
	}
	agent, err := opened.Peerstore().Get(other, "AgentVersion")
	if err != nil {
		fail("identify", err)
	}
	say("identified", map[string]any{"protocols": protocols, "agent": agent})

	result := <-ping.Ping(ctx, opened, other)
	if result.Error != nil {
		fail("ping", result.Error)
	}
	say("pinged", map[string]any{"seconds": result.RTT.Seconds()})

	payload := make([]byte, echoBytes)
	if _, err := rand.Read(payload); err != nil {
		fail("random", err)
	}
	stream, err := opened.NewStream(ctx, other, echoID)
	if err != nil {
		fail("echo", err)
	}
	go func() {
		if _, err := stream.Write(payload); err != nil {
			fail("echo", err)
		}
		if err := stream.CloseWrite(); err != nil {
			fail("echo", err)
		}
	}()
	answer, err := io.ReadAll(stream)
	if err != nil {
		fail("echo", err)
	}
	say("echoed", map[string]any{"bytes": len(answer), "equal": bytes.Equal(answer, payload)})

	// Half-close: all is said and ended before the first byte is read.
	stream, err = opened.NewStream(ctx, other, halfID)
	if err != nil {
		fail("half", err)
	}
	said := payload[:100_000]
	if _, err := stream.Write(said); err != nil {
		fail("half", err)
	}
	if err := stream.CloseWrite(); err != nil {
		fail("half", err)
	}
	answer, err = io.ReadAll(stream)
	if err != nil {
		fail("half", err)
	}
	for i, j := 0, len(said)-1; i < j; i, j = i+1, j-1 {
		said[i], said[j] = said[j], said[i]
	}
	wanted := append([]byte(strconv.Itoa(len(said))+"\n"), said...)
	say("halved", map[string]any{"bytes": len(answer), "equal": bytes.Equal(answer, wanted)})
	say("done", nil)
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: peer listen ADDR | peer dial ADDR | peer bench ADDR CONNECTS OPENS BULK_BYTES [BYTES ROUNDS]…")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "listen":
		listen(os.Args[2])
	case "dial":
		dial(os.Args[2])
	case "bench":
		bench(os.Args[2], os.Args[3:])
	default:
		os.Exit(2)
	}
}
