"""Every size, count and time limit, with its reason; the relations between them asserted.

Names end in their unit.  A limit that only one function needs still stands here:
whoever asks "how much can a peer make us hold?" reads one file.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- Blocks and DAGs -------------------------------------------------------------------
# Bitswap implementations agree on 2 MiB as the largest block they exchange.
BLOCK_BYTES_MAX: Final = 2 * MIB
# Digests outside this range are either trivially forged or absurd (threats.md 6).
DIGEST_BYTES_MIN: Final = 20
DIGEST_BYTES_MAX: Final = 128
IDENTITY_BYTES_MAX: Final = 128  # IPIP-0512
CID_BYTES_MAX: Final = 4 * 10 + DIGEST_BYTES_MAX
CID_TEXT_CHARS_MAX: Final = 512
# A balanced tree of 1,024 links has depth 4 at 1 TiB; 174 links, depth 6.  HAMTs use one
# level per 8 hash bits; trees of directories are as deep as people make them.
DAG_DEPTH_MAX: Final = 256
DAG_BLOCKS_MAX: Final = 16 * 1024 * 1024
HAMT_FANOUT_MAX: Final = 1024  # CVE-2023-23625
DAGPB_LINKS_MAX: Final = 65_536
NAME_BYTES_MAX: Final = 255  # what every POSIX file system takes
PATH_BYTES_MAX: Final = 4096
SYMLINK_BYTES_MAX: Final = 4096
CBOR_DEPTH_MAX: Final = 64

# --- Erasure coding (docs/reference/formats.md) ----------------------------------------
FRAGMENTS_PER_STRIPE_MAX: Final = 255  # distinct points of GF(2^8), less one
SEGMENT_BYTES_MAX: Final = GIB  # of data blocks
SEGMENT_FRAGMENTS_MAX: Final = 16_384  # parity included; keeps a segment block under 2 MiB
SEGMENTS_MAX: Final = 16_384  # in one manifest
ALIGNED_FILE_BYTES_MIN: Final = 64 * MIB  # a file this large starts and ends on a segment

# --- Records ---------------------------------------------------------------------------
RECORD_BYTES_MAX: Final = 16 * KIB  # one signed pin record or lease
RECORD_MANIFESTS_MAX: Final = 16
COPIES_MAX: Final = 16
CLOCK_SKEW_SECONDS_MAX: Final = 600
LEASE_SECONDS: Final = 30 * 86_400
PIN_SECONDS_DEFAULT: Final = 365 * 86_400
TRASH_SECONDS: Final = 30 * 86_400

# --- Transport -------------------------------------------------------------------------
NOISE_PLAINTEXT_BYTES_MAX: Final = 65_535 - 16
YAMUX_HEADER_BYTES: Final = 12
# A frame and its header fill exactly one Noise message: 170 → 200 MB/s against a split one.
YAMUX_FRAME_BYTES_MAX: Final = NOISE_PLAINTEXT_BYTES_MAX - YAMUX_HEADER_BYTES
YAMUX_WINDOW_BYTES_INITIAL: Final = 256 * KIB  # fixed by the yamux specification
YAMUX_WINDOW_BYTES: Final = MIB
YAMUX_FRAME_BYTES_ACCEPTED: Final = YAMUX_WINDOW_BYTES  # larger could not fit any window
YAMUX_STREAMS_MAX: Final = 1024  # per connection and direction
YAMUX_ACCEPT_BACKLOG: Final = 256  # as the specification's reference implementation
YAMUX_OUT_BYTES_HIGH: Final = MIB  # writers wait above this
YAMUX_CONTROL_FRAMES_MAX: Final = 4096  # queued answers to a peer that never reads
KEEPALIVE_SECONDS: Final = 15
KEEPALIVE_TIMEOUT_SECONDS: Final = 10  # a stopped peer is noticed within 25 s
RAW_READ_BYTES: Final = 256 * KIB
HANDSHAKE_SECONDS: Final = 10
DIAL_SECONDS: Final = 5
NEGOTIATE_SECONDS: Final = 5
CONNECTIONS_MAX: Final = 1024
PEERS_KNOWN_MAX: Final = 100_000
CLOSE_SECONDS: Final = 2
STREAM_READ_BYTES_MAX: Final = 256 * KIB

# --- Fragment protocol -----------------------------------------------------------------
CONTROL_BYTES_MAX: Final = MIB
GET_BLOCKS_MAX: Final = 1024
GET_BYTES_MAX: Final = 64 * MIB
HAVE_SEGMENTS_MAX: Final = 1024
HOLDER_MAP_ENTRIES_MAX: Final = 4096
PEER_MEMORY_BYTES_MAX: Final = 32 * MIB
PEER_STREAMS_SERVED_MAX: Final = 32  # fragment streams served at once per peer
RESERVATION_SECONDS: Final = 600
REQUEST_SECONDS: Final = 10  # for the first byte of any answer
PROGRESS_SECONDS: Final = 20  # without a byte in either direction, a transfer is dead
IDLE_STREAM_SECONDS: Final = 120  # a stream between exchanges

# --- DHT -------------------------------------------------------------------------------
KAD_BUCKET: Final = 20  # k of the libp2p specification
KAD_CONCURRENCY: Final = 10  # its recommended alpha
KAD_MESSAGE_BYTES_MAX: Final = 64 * KIB
KAD_KEY_BYTES_MAX: Final = 128
KAD_PEERS_PER_REPLY_MAX: Final = 20
KAD_ADDRESSES_PER_PEER_MAX: Final = 16
KAD_REQUEST_SECONDS: Final = 2
KAD_LOOKUP_SECONDS: Final = 10
KAD_KEYS_MAX: Final = 200_000
KAD_PROVIDERS_PER_KEY_MAX: Final = 128
KAD_KEYS_PER_PEER_MAX: Final = 20_000
PROVIDER_SECONDS: Final = 48 * 3600
REPROVIDE_SECONDS: Final = 22 * 3600

# --- Storage ---------------------------------------------------------------------------
SMALL_BLOCK_BYTES: Final = 32 * KIB  # below: SQLite; at or above: a file of its own
COMMIT_BATCH_BLOCKS_MAX: Final = 1024
COMMIT_BATCH_BYTES_MAX: Final = 64 * MIB

# --- Service ---------------------------------------------------------------------------
ADD_STRIPES_IN_FLIGHT: Final = 4
READ_AHEAD_BYTES: Final = 16 * MIB
HEDGE_SECONDS: Final = 0.5  # a block this late is asked of somebody else too
FETCH_BLOCK_SECONDS: Final = 30
RETRIEVE_SECONDS: Final = 30  # until the first byte; the gateway answers 504 then

# --- HTTP ------------------------------------------------------------------------------
HTTP_PATH_CHARS_MAX: Final = 8192
HTTP_HEADER_BYTES_MAX: Final = 32 * KIB
HTTP_JSON_BYTES_MAX: Final = MIB

assert IDENTITY_BYTES_MAX <= DIGEST_BYTES_MAX
assert SMALL_BLOCK_BYTES < BLOCK_BYTES_MAX <= GET_BYTES_MAX
assert SEGMENT_FRAGMENTS_MAX >= FRAGMENTS_PER_STRIPE_MAX
assert YAMUX_FRAME_BYTES_MAX + YAMUX_HEADER_BYTES == NOISE_PLAINTEXT_BYTES_MAX
assert YAMUX_FRAME_BYTES_MAX <= YAMUX_WINDOW_BYTES_INITIAL <= YAMUX_WINDOW_BYTES
assert BLOCK_BYTES_MAX < PEER_MEMORY_BYTES_MAX
assert READ_AHEAD_BYTES <= PEER_MEMORY_BYTES_MAX
assert REPROVIDE_SECONDS * 2 < PROVIDER_SECONDS
assert KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS < 30
assert REQUEST_SECONDS < PROGRESS_SECONDS < IDLE_STREAM_SECONDS
