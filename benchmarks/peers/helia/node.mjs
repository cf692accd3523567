// A Helia node that does what it is told by JSON lines: node node.mjs DIRECTORY
// Blocks in the file system, TCP, Noise, yamux and bitswap; no routing, no other transports.
// Says its address first.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { FsBlockstore } from 'blockstore-fs'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'

const PARALLEL = 8

const blockstore = new FsBlockstore(join(process.argv[2], 'blocks'))
await blockstore.open()
const helia = withBitswap(withLibp2pLight(createHeliaLight({ blockstore }), {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
}))
await helia.start()
const fs = unixfs(helia)
const seconds = (begun) => (performance.now() - begun) / 1000
const from = (address) => ({ providers: [multiaddr(address)] })

async function size (name, options) {
  let got = 0
  for await (const piece of fs.cat(CID.parse(name), options)) {
    got += piece.length
  }
  return got
}

const commands = {
  async connect ({ address }) {
    await helia.libp2p.dial(multiaddr(address))
    return {}
  },

  async add ({ path }) {
    const begun = performance.now()
    const cid = await fs.addByteStream(createReadStream(path, { highWaterMark: 1 << 20 }))
    return { id: cid.toString(), seconds: seconds(begun) }
  },

  async add_each ({ paths }) {
    const bodies = await Promise.all(paths.map((path) => readFile(path)))
    const begun = performance.now()
    const ids = []
    for (const body of bodies) {
      ids.push((await fs.addBytes(body)).toString())
    }
    return { ids, seconds: seconds(begun) }
  },

  async add_tree ({ path }) {
    const begun = performance.now()
    const files = (await readdir(path)).sort().map((name) => ({
      path: name, content: createReadStream(join(path, name))
    }))
    let last
    for await (const added of fs.addAll(files, { wrapWithDirectory: true })) {
      last = added.cid
    }
    return { id: last.toString(), seconds: seconds(begun) }
  },

  async fetch ({ name, address, offset, length }) {
    const digest = createHash('sha256')
    const begun = performance.now()
    let first
    for await (const piece of fs.cat(CID.parse(name), { ...from(address), offset, length })) {
      first ??= seconds(begun)
      digest.update(piece)
    }
    return { seconds: seconds(begun), first, sha256: digest.digest('hex') }
  },

  async fetch_each ({ ids, address }) {
    const begun = performance.now()
    let bytes = 0
    for (const name of ids) {
      bytes += await size(name, from(address))
    }
    return { seconds: seconds(begun), bytes }
  },

  async fetch_tree ({ name, address }) {
    const begun = performance.now()
    const entries = []
    for await (const entry of fs.ls(CID.parse(name), from(address))) {
      entries.push(entry)
    }
    let bytes = 0
    async function work () {
      for (let entry = entries.pop(); entry != null; entry = entries.pop()) {
        const got = await size(entry.cid.toString(), from(address))
        bytes += got
      }
    }
    await Promise.all(Array.from({ length: PARALLEL }, work))
    return { seconds: seconds(begun), bytes }
  }
}

console.log(JSON.stringify({ address: helia.libp2p.getMultiaddrs()[0].toString() }))
for await (const line of createInterface({ input: process.stdin })) {
  const { do: what, ...words } = JSON.parse(line)
  let answer
  try {
    answer = await commands[what](words)
  } catch (error) {
    answer = { error: error.stack }
  }
  console.log(JSON.stringify(answer))
}
process.exit(0)
