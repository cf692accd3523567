// A node of go-libp2p-kad-dht, the DHT that Kubo uses, for the interoperability tests:
// TCP on the loopback address, Noise, yamux.
//
// `dht server|client <protocol>` prints its address, then answers every line of its standard
// input with a line of JSON; it ends with its input.  What the lines are: ../kad_node.py.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

const commandTime = 20 * time.Second

type node struct {
	host host.Host
	dht  *dht.IpfsDHT
}

func start(mode, name string) (*node, error) {
	host, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.DisableRelay(),
	)
	if err != nil {
		return nil, err
	}
	modes := map[string]dht.ModeOpt{"server": dht.ModeServer, "client": dht.ModeClient}
	prefix := strings.TrimSuffix(name, "/kad/1.0.0")
	routing, err := dht.New(host,
		dht.Mode(modes[mode]), dht.ProtocolPrefix(protocol.ID(prefix)))
	if err != nil {
		return nil, err
	}
	return &node{host, routing}, nil
}

// A peer as the tests read it.
type found struct {
	Peer      string   `json:"peer"`
	Addresses []string `json:"addresses"`
}

func named(info peer.AddrInfo) found {
	addresses := []string{}
	for _, address := range info.Addrs {
		addresses = append(addresses, address.String())
	}
	return found{info.ID.String(), addresses}
}

func (n *node) peers(ids []peer.ID) []found {
	all := []found{}
	for _, id := range ids {
		all = append(all, named(n.host.Peerstore().PeerInfo(id)))
	}
	return all
}

// do carries out one command and returns what its line of JSON says.
func (n *node) do(ctx context.Context, command, argument string) (any, error) {
	switch command {
	case "table":
		return n.peers(n.dht.RoutingTable().ListPeers()), nil
	case "connect":
		info, err := peer.AddrInfoFromString(argument)
		if err != nil {
			return nil, err
		}
		return []found{}, n.host.Connect(ctx, *info)
	case "find":
		id, err := peer.Decode(argument)
		if err != nil {
			return nil, err
		}
		info, err := n.dht.FindPeer(ctx, id)
		return []found{named(info)}, err
	}
	key, err := hex.DecodeString(argument)
	if err != nil {
		return nil, err
	}
	switch command {
	case "closest":
		ids, err := n.dht.GetClosestPeers(ctx, string(key))
		return n.peers(ids), err
	case "provide":
		return []found{}, n.dht.Provide(ctx, cid.NewCidV1(cid.Raw, key), true)
	case "providers":
		all := []found{}
		for info := range n.dht.FindProvidersAsync(ctx, cid.NewCidV1(cid.Raw, key), 0) {
			all = append(all, named(info))
		}
		return all, nil
	}
	return nil, fmt.Errorf("no such command: %s", command)
}

func main() {
	n, err := start(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%s/p2p/%s\n", n.host.Addrs()[0], n.host.ID())
	lines := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		command, argument, _ := strings.Cut(lines.Text(), " ")
		ctx, cancel := context.WithTimeout(context.Background(), commandTime)
		answer, err := n.do(ctx, command, argument)
		cancel()
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		}
		if answers.Encode(answer) != nil {
			return
		}
	}
}
