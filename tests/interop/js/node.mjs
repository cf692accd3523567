// A js-libp2p node for the interoperability tests: TCP, Noise, yamux, one echo protocol.
// `node node.mjs listen` prints its address and serves until stdin ends;
// `node node.mjs dial <multiaddr> <bytes>` sends that many, reads them back, compares.
import { createHash, randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const ECHO = '/dstore/test/echo/1.0.0'
const [role, address, size] = process.argv.slice(2)

const node = await createLibp2p({
  addresses: { listen: role === 'listen' ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()]
})

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

if (role === 'listen') {
  await node.handle(ECHO, async ({ stream }) => {
    try {
      await stream.sink(stream.source)
    } catch (error) {
      console.error('echo ended:', error.message)
    }
  })
  console.log(node.getMultiaddrs()[0].toString())
  process.stdin.resume()
  process.stdin.on('end', async () => {
    await node.stop()
    process.exit(0)
  })
} else {
  const sent = randomBytes(Number(size))
  const stream = await node.dialProtocol(multiaddr(address), ECHO)
  const received = []
  await Promise.all([
    stream.sink((async function * () {
      for (let start = 0; start < sent.length; start += 50000) {
        yield sent.subarray(start, start + 50000)
      }
    })()),
    (async () => {
      for await (const chunk of stream.source) {
        received.push(Buffer.from(chunk.subarray()))
      }
    })()
  ])
  const back = Buffer.concat(received)
  console.log(JSON.stringify({ bytes: back.length, same: sha256(sent) === sha256(back) }))
  await node.stop()
  process.exit(0)
}
