// A node of js-libp2p's DHT for the interoperability tests: TCP on the loopback address,
// Noise, yamux.
//
// `node dht.mjs server|client <protocol>` prints its address, then answers every line of its
// standard input with a line of JSON; it ends with its input.  What the lines are: ../kad_node.py.
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'

// Packages of today call it; Node 20 does not have it yet.
Promise.withResolvers ??= () => {
  const parts = {}
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }))
  return parts
}

const COMMAND_MILLISECONDS = 20_000
const [mode, protocol] = process.argv.slice(2)

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol,
      clientMode: mode === 'client',
      peerInfoMapper: passthroughMapper, // the others leave out all that is on loopback
      initialQuerySelfInterval: 0
    })
  }
})

const named = ({ id, multiaddrs }) => ({
  peer: id.toString(),
  addresses: multiaddrs.map((address) => address.decapsulateCode(421).toString())
})
const bytes = (hex) => Uint8Array.from(Buffer.from(hex, 'hex'))
const cid = (hex) => CID.createV1(raw.code, Digest.decode(bytes(hex)))

async function all (peers) {
  const found = []
  for await (const peer of peers) {
    found.push(named(peer))
  }
  return found
}

const commands = {
  connect: async (address, options) => {
    await node.dial(multiaddr(address), options)
    return []
  },
  table: async () => {
    const peers = node.services.dht.routingTable.kb.toIterable()
    return Array.from(peers, ({ peerId }) => named({ id: peerId, multiaddrs: [] }))
  },
  find: async (peer, options) => [
    named(await node.peerRouting.findPeer(peerIdFromString(peer), options))
  ],
  closest: (key, options) => all(node.peerRouting.getClosestPeers(bytes(key), options)),
  provide: async (key, options) => {
    await node.contentRouting.provide(cid(key), options)
    return []
  },
  providers: (key, options) => all(node.contentRouting.findProviders(cid(key), options))
}

console.log(node.getMultiaddrs()[0].toString())
for await (const line of createInterface({ input: process.stdin })) {
  const [command, argument] = line.split(' ')
  let answer
  try {
    const signal = AbortSignal.timeout(COMMAND_MILLISECONDS)
    answer = await commands[command](argument, { signal })
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` }
  }
  console.log(JSON.stringify(answer))
}
await node.stop()
process.exit(0)
