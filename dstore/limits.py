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
CID_TEXT_CHARS_MAX: Final = 512
# A balanced tree of 1,024 links has depth 4 at 1 TiB; 174 links, depth 6.  HAMTs use one
# level per 8 hash bits; trees of directories are as deep as people make them.
DAG_DEPTH_MAX: Final = 256
DAG_BLOCKS_MAX: Final = 16 * 1024 * 1024
# Links held at once by a walk, over all levels of its path: some 150 bytes each.
DAG_PENDING_LINKS_MAX: Final = 262_144
HAMT_FANOUT_MAX: Final = 1024  # CVE-2023-23625
DAGPB_LINKS_MAX: Final = 65_536
NAME_BYTES_MAX: Final = 255  # what every POSIX file system takes
PATH_BYTES_MAX: Final = 4096
SYMLINK_BYTES_MAX: Final = 4096
CBOR_DEPTH_MAX: Final = 64
CBOR_ITEMS_MAX: Final = 262_144  # four times what a full segment has; an item may cost 200 bytes

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
DOMAINS_PER_PEER_MAX: Final = 16  # failure domain labels in one lease
DOMAIN_BYTES_MAX: Final = 128
LABEL_BYTES_MAX: Final = DOMAIN_BYTES_MAX - 6  # announced as the domain "label:…"
CLOCK_SKEW_SECONDS_MAX: Final = 600
LEASE_SECONDS: Final = 30 * 86_400
LEASE_SECONDS_MIN: Final = 86_400  # a shorter promise, while the pin runs longer, is none
PIN_SECONDS_DEFAULT: Final = 365 * 86_400

# --- Transport -------------------------------------------------------------------------
NOISE_PLAINTEXT_BYTES_MAX: Final = 65_535 - 16
YAMUX_HEADER_BYTES: Final = 12
# Whole Noise messages, of which nothing is copied; its header goes with what comes before it.
YAMUX_FRAME_BYTES_MAX: Final = 4 * NOISE_PLAINTEXT_BYTES_MAX
YAMUX_WINDOW_BYTES_INITIAL: Final = 256 * KIB  # fixed by the yamux specification
YAMUX_WINDOW_BYTES: Final = 2 * MIB
YAMUX_FRAME_BYTES_ACCEPTED: Final = YAMUX_WINDOW_BYTES  # larger could not fit any window
YAMUX_STREAMS_MAX: Final = 1024  # per connection and direction
YAMUX_ACCEPT_BACKLOG: Final = 256  # as the specification's reference implementation
YAMUX_OUT_BYTES_HIGH: Final = MIB  # writers wait above this
YAMUX_BATCH_BYTES: Final = YAMUX_FRAME_BYTES_MAX  # sent before the queue is looked at again
YAMUX_CONTROL_FRAMES_MAX: Final = 4096  # queued answers to a peer that never reads
# Where bytes did not go both ways for so long, a side pings, so that the other hears of it however
# slowly data goes; where nothing at all was heard for longer, the peer is taken for dead.
KEEPALIVE_SECONDS: Final = 10
KEEPALIVE_TIMEOUT_SECONDS: Final = 25
KEEPALIVE_LOOK_SECONDS: Final = 2  # all connections of a node are looked after at once
RAW_READ_BYTES: Final = 512 * KIB
# A peer whose answers take less is near; its connection needs no longer queue (which Linux
# doubles): half a MiB in a millisecond is more than anybody sends.
NEAR_MICROSECONDS: Final = 1000
NEAR_SEND_BUFFER_BYTES: Final = 256 * KIB
HANDSHAKE_SECONDS: Final = 10
# What a limited node may send or receive at once after a pause: a tenth of a second's worth,
# and at least one frame.  A limit below the least would make live peers look dead.
BANDWIDTH_BURST_SECONDS: Final = 0.1
# What goes at once under a limit, of the bytes of a second: many connections have their turns
# before their peers take them for dead.
BANDWIDTH_TURN: Final = 1 / 64
BANDWIDTH_TURN_BYTES_MIN: Final = 8 * KIB
BANDWIDTH_BURST_BYTES: Final = 64 * KIB
BANDWIDTH_BYTES_PER_SECOND_MIN: Final = 128 * 1000
# Of a limit that foreground traffic could use up, what repair gets all the same.
BANDWIDTH_REPAIR_SHARE: Final = 1 / 16
BANDWIDTH_LOOK_SECONDS: Final = 1  # between looks at the clock and at the counters
BANDWIDTH_RATE_SECONDS: Final = 10  # over which current rates are told
BANDWIDTH_PERIODS_MAX: Final = 64
BANDWIDTH_GROUPS_MAX: Final = 64  # of peers with limits of their own
BANDWIDTH_CLAIMS_MAX: Final = 4096  # peers remembered to have claimed a label of a group
LABELS_LOOK_SECONDS: Final = 2  # between looks for connected peers whose labels are not known
LABELS_RETRY_SECONDS: Final = 300  # until one that did not answer is asked again
LABELS_AGAIN_SECONDS: Final = 600  # and one that did
DIAL_SECONDS: Final = 5
NEGOTIATE_SECONDS: Final = 5
CONNECTIONS_MAX: Final = 1024
PEERS_KNOWN_MAX: Final = 100_000
CLOSE_SECONDS: Final = 2
STREAM_READ_BYTES_MAX: Final = 256 * KIB
STREAM_WRITE_BYTES: Final = YAMUX_FRAME_BYTES_MAX  # in one go: whole frames
# Multistream-select: protocol names are short, and nobody proposes dozens.
NEGOTIATE_MESSAGE_BYTES_MAX: Final = 1024
NEGOTIATE_PROPOSALS_MAX: Final = 32
PROTOCOL_CHARS_MAX: Final = 256
IDENTIFY_BYTES_MAX: Final = 64 * KIB
IDENTIFY_PROTOCOLS_MAX: Final = 256  # Kubo announces some 20
ADDRESSES_PER_PEER_MAX: Final = 16
ADDRESS_CHARS_MAX: Final = 320  # a DNS name of 253 and what stands around it
# At the cap, an inbound connection without a stream for so long makes room for a new one.
INBOUND_IDLE_SECONDS: Final = 60
CONNECTIONS_PER_IP_MAX: Final = 64  # inbound; loopback is exempt
DIALS_MAX: Final = 64  # at once
DIAL_STAGGER_SECONDS: Final = 0.25  # a second address is tried beside a slow first one
# All that a peer sends up to the end of Noise; an RSA key of 4,096 bits and its signature
# need 1.1 KiB.  More would go into arithmetic that blocks the node.
HANDSHAKE_BYTES_MAX: Final = 4 * KIB
HANDSHAKE_IDENTIFY_BYTES_MAX: Final = 2 * KIB  # room for the keys beside it
HANDSHAKES_PENDING_MAX: Final = 256  # the oldest makes room: an honest one takes milliseconds
PEER_STREAMS_INBOUND_MAX: Final = 256  # served at once per peer
PINGS_PER_PEER_MAX: Final = 2  # streams, as the libp2p ping specification asks
BOOTSTRAP_PEERS_MAX: Final = 64
BOOTSTRAP_BACKOFF_SECONDS_MIN: Final = 1
BOOTSTRAP_BACKOFF_SECONDS_MAX: Final = 60

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
FIND_MANIFESTS_MAX: Final = 256  # in one answer; a root has one per code it was kept under
FIND_RECORDS_MAX: Final = 32  # in one message, at RECORD_BYTES_MAX half of CONTROL_BYTES_MAX
HAVE_BATCH_SEGMENTS: Final = 16  # looked up and answered together, so that memory stays flat
HAVE_BYTES_MAX: Final = 64 * MIB  # what one question may bring back
SLOT_REFS_MAX: Final = 1024  # in one Renew or Release
CHALLENGES_MAX: Final = 64
NONCE_BYTES_MAX: Final = 64
HOLDER_ADDRESSES_MAX: Final = 8  # of one entry of a holder map
AWAY_PERIODS_MAX: Final = 64
VERSION_CHARS_MAX: Final = 64
REFUSAL_CHARS_MAX: Final = 512
SLOT_DOCUMENTS_MAX: Final = 8  # blocks that a holder may ask for before it takes a slot
SLOT_BATCH_BYTES_MAX: Final = 8 * MIB  # verified and made durable together
SLOT_BATCH_SECONDS: Final = 0.5  # what came first waits no longer for the rest of its batch
PEER_SLOTS_RECEIVED_MAX: Final = 4  # at once; the next offers of the peer wait their turn
LARGE_MESSAGE_BYTES: Final = 64 * KIB  # above: few at once; parsed, one takes some 4 MiB
PEER_LARGE_MESSAGES_MAX: Final = 2
# For blocks; readers' buffers and large messages are taken off what a peer may occupy.
PEER_BUDGET_BYTES: Final = (
    PEER_MEMORY_BYTES_MAX
    - PEER_STREAMS_SERVED_MAX * STREAM_READ_BYTES_MAX
    - PEER_LARGE_MESSAGES_MAX * 4 * MIB
)
BLOCK_OVERHEAD_BYTES: Final = KIB  # what holding a block costs beside its bytes
VERIFY_BATCH_BYTES: Final = 2 * MIB  # hashed in one call in a worker
INLINE_HASH_BYTES: Final = 32 * KIB  # hashed in place: a hand-over would cost more
SMALL_WRITES_BYTES: Final = 64 * KIB  # headers and small blocks are written together
SERVED_MEMORY_BYTES_MAX: Final = 256 * MIB  # all peers together
SERVED_STREAMS_MAX: Final = 2048  # all peers together
SERVED_WAIT_SECONDS: Final = 5  # for memory that others have; then a reader is told to go elsewhere
MESSAGE_SECONDS: Final = 120  # for one whole message or block: a slower peer is given up
REPAIR_MESSAGE_SECONDS: Final = 480  # the same behind a foreground that leaves repair its share
WORKING_SECONDS: Final = 1  # between signs of life while a disk or a check takes long
SLOT_SILENCE_SECONDS: Final = 4.5  # a holder that says nothing while a slot comes is given up
# One that gets nothing done for so long while the others do has its slot brought elsewhere,
# within the five seconds that an add may stand still.
SLOT_STALL_SECONDS: Final = 3
SLOT_STALL_AGAIN_SECONDS: Final = 0.5  # and of one that took the slot in the place of such a one
# The same, until it accepts the slot at all: four one-way times of a peer 0.3 s away, and more.
SLOT_ACCEPT_SECONDS: Final = 1.5
SLOT_LAST_SECONDS: Final = 4  # without news of a slot from anybody, where nobody else has room
SLOT_WATCH_SECONDS: Final = 0.25
WORKING_TOTAL_SECONDS: Final = 60  # signs of life alone are believed this long
FRAGMENT_STREAMS_IDLE_PER_PEER_MAX: Final = 4
FRAGMENT_STREAMS_IDLE_MAX: Final = 256
FRAGMENT_STREAMS_PER_PEER_MAX: Final = 16  # a client's own, below what a server serves

# --- DHT -------------------------------------------------------------------------------
KAD_BUCKET: Final = 20  # k of the libp2p specification
KAD_BUCKET_SOUGHT: Final = 8  # beyond the k nearest: looked for, while up to k are taken
KAD_CONCURRENCY: Final = 10  # its recommended alpha
# Peers of one public subnet, wide (/16; IPv6 /32) and narrow (/24; IPv6 /48).
KAD_BUCKET_WIDE_MAX: Final = 3
KAD_BUCKET_NARROW_MAX: Final = 2
KAD_TABLE_WIDE_MAX: Final = 12
KAD_TABLE_NARROW_MAX: Final = 6
KAD_LOOKUP_WIDE_MAX: Final = 3  # among those that count as closest, while there are others
KAD_LOOKUP_NARROW_MAX: Final = 2
KAD_TRUSTED_STARTS: Final = 3  # peers of the catalog that a lookup asks first
KAD_MESSAGE_BYTES_MAX: Final = 64 * KIB
KAD_KEY_BYTES_MAX: Final = 128
KAD_PEERS_PER_REPLY_MAX: Final = 20
KAD_ADDRESSES_PER_PEER_MAX: Final = 16
KAD_REQUEST_SECONDS: Final = 2
KAD_LOOKUP_SECONDS: Final = 10
KAD_QUERIES_MAX: Final = 256  # peers asked by one lookup; honest ones need a tenth
# A peer this late is no longer waited for, though its answer is still taken: lookups with a
# third of the peers silent then end within 2 s.  Between the two, twice what most answers take.
KAD_SLOW_SECONDS_MIN: Final = 0.25
KAD_SLOW_SECONDS_MAX: Final = 1.0
KAD_OVERDUE_SECONDS_MIN: Final = 0.05  # another is asked beside a peer that is later than most
KAD_DELAYS_KEPT: Final = 128  # answers whose delays are remembered
# Peers asked for their own surroundings where a lookup left silent ones behind.
KAD_AROUND_AT_ONCE: Final = 2
KAD_AROUND_MAX: Final = 4
KAD_SUSPECT_SECONDS: Final = 30  # for so long, a silent peer is waited for less
KAD_SUSPECT_SLOW_SECONDS_MIN: Final = 0.05
KAD_SUSPECTS_MAX: Final = 4096
KAD_FAILURES_MAX: Final = 3  # unanswered requests in a row that cost a place in the table
# What a lookup found is good for so long for other keys that it answers, unless a peer of it
# falls silent or the routing table changes meanwhile.
KAD_FOUND_SECONDS: Final = 10
KAD_FOUND_KEPT: Final = 16  # lookups; each names up to a few hundred peers
KAD_PROVIDE_ATTEMPTS: Final = 2  # of storing and reading back a record at one peer
KAD_REPLICAS_WANTED: Final = 10  # confirmed for each key; half of those told
KAD_PROVIDE_LOOKUPS_MAX: Final = 4  # at once, of one batch of keys
KAD_PROVIDE_LOOKUP_PEERS: Final = 3 * KAD_BUCKET  # of a lookup that neighbouring keys share
KAD_PROVIDE_ROUNDS_MAX: Final = 3  # of telling whom the answers named
KAD_PROVIDE_EXCHANGES_MAX: Final = 32  # at once; a silent peer takes a place for 4 s
KAD_PROVIDE_KEYS_PER_EXCHANGE: Final = 16  # each read back: some 32 KiB of answers
KAD_POLL_SECONDS: Final = 5  # between looks at who is connected
KAD_REFRESH_SECONDS: Final = 600
KAD_REFRESH_LOOKUPS_MAX: Final = 12  # random ones; each draws 2 ** prefix keys to find its own
KAD_REFRESH_ANSWERS: Final = 3  # in a row that name nobody for the table end a random one
KAD_EXTRA_PEERS_MAX: Final = 1024  # known from elsewhere, not yet heard
KAD_ADDRESS_BYTES_MAX: Final = 256
KAD_STREAMS_PER_PEER_MAX: Final = 8  # served at once; the ninth is reset
# A peer's answers come no faster; a thousand keys stored and read back at once are a burst.
KAD_REQUESTS_PER_SECOND: Final = 200
KAD_REQUESTS_BURST: Final = 2500
KAD_PACED_PEERS_MAX: Final = 4096
KAD_STREAMS_MAX: Final = 1024  # above, the one idle longest makes room
KAD_SERVED_IDLE_SECONDS: Final = 30  # without a whole request, a served stream is reset
KAD_POOLED_IDLE_SECONDS: Final = 20  # an outbound stream is re-used within this
KAD_POOLED_PER_PEER_MAX: Final = 2
KAD_POOLED_MAX: Final = 256
KAD_KEYS_MAX: Final = 200_000
KAD_PROVIDERS_PER_KEY_MAX: Final = 128
KAD_KEYS_PER_PEER_MAX: Final = 20_000
PROVIDER_SECONDS: Final = 48 * 3600
PROVIDER_SAVE_SECONDS: Final = 10  # of records that a crash may cost this node
PROVIDER_SAVE_RECORDS: Final = 1000  # in one transaction, or taken back without a pause
# A restart counts as at most so long an absence, whatever the clock says: what was provided
# since is still alive after it, also where the clock has jumped by days.
PROVIDER_DOWNTIME_SECONDS_MAX: Final = 24 * 3600
KAD_RECORDS_MAX: Final = 500_000  # of all keys and peers, some 600 bytes of memory each
REPROVIDE_SECONDS: Final = 22 * 3600

# --- Placement and health ---------------------------------------------------------------
# Segments of one root share holders over this span: fewer distinct holder sets, fewer fatal
# coincidences (docs/explanation/durability.md).
PLACEMENT_GROUP_BYTES: Final = 64 * GIB
SCORE_MIN: Final = 0.96  # of a peer that gets new slots
GUARANTEE_STEPS_MAX: Final = 50_000  # of the exact search; a safe lower bound beyond
HEALTH_CHECK_SECONDS: Final = 6 * 3600
AWAY_SECONDS: Final = 72 * 3600  # of silence before a slot counts as gone
AT_RISK_SECONDS: Final = 3600  # with no fragment to spare

# --- Storage ---------------------------------------------------------------------------
ADDED_BLOCKS_MAX: Final = 16_384  # of an add, read again from its files: 16 GiB of them, 5 MB
SMALL_BLOCK_BYTES: Final = 32 * KIB  # below: SQLite; at or above: a file of its own
COMMIT_BATCH_BLOCKS_MAX: Final = 1024
RESERVE_INODES: Final = 10_000  # kept free, or 1 % where a file system has few
FRESH_BLOCKS_MAX: Final = 16_384  # written or checked last: a checksum of each is kept, 4 MB
QUARANTINE_BLOCKS_MAX: Final = 256  # damaged blocks kept as evidence
PRIVATE_FILE_BYTES_MAX: Final = 64 * KIB  # a key or api.json
RECORD_FILE_BYTES_MAX: Final = 2 * RECORD_BYTES_MAX  # an envelope and its row
PEER_TEXT_CHARS_MAX: Final = 512  # one address, role or domain label, as kept
FAULT_DETAIL_CHARS_MAX: Final = 1024
FAULTS_KEPT_MAX: Final = 10_000

# --- Service ---------------------------------------------------------------------------
IMPORT_BATCH_BYTES: Final = 8 * MIB  # read, hashed and stored in one call in a worker
IMPORT_BATCHES_IN_FLIGHT: Final = 3  # two cores hash while a third batch waits for the disk
IMPORT_BATCH_FILES_MAX: Final = 256
ENCODE_BATCH_BYTES: Final = 8 * MIB  # of data blocks, in whole stripes
ENCODE_BATCHES_IN_FLIGHT: Final = 3
ANNOUNCE_SECONDS: Final = 5  # an add is done without the DHT's word after that
ANNOUNCE_POLL_SECONDS: Final = 0.1
UPLOAD_ATTEMPTS_MAX: Final = 8  # to bring one slot to somebody
UPLOADS_MAX: Final = 32  # slots on their way at once: a few megabytes each
CANDIDATES_MAX: Final = 128
HELLO_SECONDS: Final = 3  # a candidate that has not answered by then is not asked for more
HELLO_SILENT_SECONDS: Final = 300  # so long, nobody waits so for one that did not answer
HELLO_KEPT_SECONDS: Final = 2  # what one said is taken for true, while it is connected
# Nor one that is silent this long, and four times the slowest answer, after the last of others,
# where it could not add a failure domain.
HELLO_QUIET_SECONDS: Final = 0.5
SERVE_BATCH_BYTES: Final = 2 * MIB  # read in one call in a worker, then written out
SERVE_AHEAD_BYTES: Final = MIB  # of these for one stream, where it is more than one block
SERVE_BATCH_BLOCKS_MAX: Final = 128
PARITY_BATCH_BYTES: Final = 2 * MIB  # computed in one call
PARITY_KEPT_BYTES: Final = 16 * MIB  # for slots that are behind others; one segment at a time
READ_AHEAD_BYTES: Final = 16 * MIB
# All readers together; above it each goes on with one block at a time.
READ_AHEAD_TOTAL_BYTES: Final = 128 * MIB
# A root of which nothing is known is asked of so many connected peers, before any search.
ROOT_GUESS_PEERS: Final = 8
ROOT_GUESS_FIRST: Final = 2  # one after the other, then the rest at once
ROOT_GUESS_FIRST_SECONDS: Final = 0.02
ROOT_GUESS_SECONDS: Final = 0.05
ROOT_GUESS_BYTES: Final = 64 * KIB  # about what a root has
INNER_NODES_KEPT_BYTES: Final = MIB  # of blocks; parsed, an entry takes some 500 bytes
HELD_LOOKUP_BLOCKS: Final = 64  # of a file or directory, looked for here together
HELD_LOOKUP_STRIPES: Final = 16  # to be decoded, likewise
HELD_LOOKUPS_KEPT: Final = 64  # what was found, per root
DECODE_BATCH_BYTES: Final = 4 * MIB  # of fragments, decoded in one call in a worker
# So many files of as many neighbours in a directory asked for, and the others are fetched too,
# where they are small: in vain, that is at most three times what was wanted.
DIRECTORY_AHEAD_AFTER: Final = 16
DIRECTORY_AHEAD_FILE_BYTES: Final = 16 * KIB
ENTRY_CONTENT_BYTES_MAX: Final = 16 * KIB  # of a file that goes along with its entry
ASKED_PEERS_MAX: Final = 32  # connected peers asked about a root beside the DHT
MANIFESTS_ASKED_FIRST: Final = 2  # of them, before the others
DHT_AFTER_SECONDS: Final = 0.05  # that they have the word alone
DHT_BESIDE_SECONDS: Final = 0.25  # the same where they know the root: reading begins meanwhile
DISCOVERY_AGAIN_SECONDS: Final = 5
MANIFESTS_TRIED_MAX: Final = 64  # of one root, from all peers
MANIFESTS_PER_PEER_MAX: Final = 16  # the first that it names
HOLDERS_PER_SLOT_MAX: Final = 8  # that one peer may name: invented ones cost half a second each
HOLDERS_ASKED_MAX: Final = 64  # when two did not know enough
SOURCES_TRIED_MAX: Final = 2
HOLDER_MAP_PEERS_ASKED: Final = 2  # who must agree is unknown; the union is used
HOLDER_MAP_SECONDS: Final = 5  # what was answered by then is the map
SEGMENT_ALONE_SECONDS: Final = 2  # for the first that lists a block; then others are tried too
SEGMENT_PROVED_SECONDS: Final = 10  # the same for one that led to blocks before: lines are slow
MANIFEST_FAILURES_COUNTED: Final = 4  # in a session: its turn comes so much later at most
SEGMENTS_BYTES_MAX: Final = 64 * MIB  # decoded, of all sessions that read
SEGMENT_FRAGMENT_BYTES: Final = 512  # what a fragment of a decoded segment, or a holder, takes
SEGMENT_USED_SECONDS: Final = 30  # since the last use: then a session reads no more
SESSIONS_MAX: Final = 64  # roots of which holders are remembered
SESSION_SECONDS: Final = 300
PREFETCH_NODES: Final = 8
HEDGE_SECONDS: Final = 0.5  # anything else this late is asked of somebody else too
# A block is asked of somebody else too after so many times what its peer took lately, within
# these; the least is above what a busy event loop costs.
HEDGE_FACTOR: Final = 4
HEDGE_SECONDS_MIN: Final = 0.1
HEDGE_SECONDS_MAX: Final = HEDGE_SECONDS
HEDGE_SECONDS_UNKNOWN: Final = 0.2  # of a peer that has not answered yet
ESTIMATE_WEIGHT: Final = 0.25  # of the newest answer in a peer's averages
FETCH_BLOCK_SECONDS: Final = 30
FETCH_STREAMS_PER_PEER: Final = 2  # one request travels while the other's answer streams
FETCH_STREAM_BYTES: Final = MIB  # under way with a peer before a second stream is worth it
FETCH_BATCH_BLOCKS_MAX: Final = 256  # small blocks: few round trips
FETCH_BATCH_BYTES_MAX: Final = 4 * MIB  # large ones: a late block waits for few others
FETCH_PEERS_TRACKED_MAX: Final = 4096
PEER_COOL_OFF_SECONDS: Final = 5  # after a failure others go first; doubles each time
PEER_COOL_OFF_SECONDS_MAX: Final = 300

PEERS_LISTED_MAX: Final = 1000
KEEPER_SECONDS: Final = 600
KEEPER_SLOTS_PER_STEP: Final = 1000
LEASE_NOTES_PER_STEP: Final = 256  # segments whose holders an owner asks
ORPHANS_WALKED_PER_STEP: Final = 20_000  # blocks looked at: a fraction of a second
ORPHANS_REMEMBERED_MAX: Final = 100_000  # more wait for the next round
ORPHAN_SECONDS: Final = 86_400  # so long a repeated add finds what a killed one stored
WORKER_RETRY_SECONDS: Final = 60
PROVIDE_BATCH_KEYS: Final = 128  # told together; what is new waits for at most one batch
PROVIDE_RETRY_SECONDS: Final = 30  # where too few peers confirmed; doubles each time, up to:
PROVIDE_RETRY_SECONDS_MAX: Final = 3600
DURATION_SECONDS_MAX: Final = 100 * 365 * 86_400  # of a setting or a pin: calendars end
SIZE_BYTES_MAX: Final = 1 << 60  # of a setting
SHUTDOWN_SECONDS: Final = 5  # what is under way may end in this time, then it is cancelled

# --- HTTP ------------------------------------------------------------------------------
HTTP_PATH_CHARS_MAX: Final = 8192
HTTP_HEADER_BYTES_MAX: Final = 32 * KIB
HTTP_HEADERS_MAX: Final = 128  # of one request
HTTP_PIPELINED_MAX: Final = 128  # requests read ahead of answers, all of one read
HTTP_READ_HEAD_BYTES: Final = 16 * KIB  # at once, where a head may come
HTTP_READ_BYTES: Final = 64 * KIB  # at once, of a body
HTTP_BODY_BYTES_WAITING: Final = 4 * HTTP_READ_BYTES  # read ahead of who takes it
HTTP_JSON_BYTES_MAX: Final = MIB
HTTP_CONNECTIONS_MAX: Final = 1024  # per server; the next one is closed at once
HTTP_IDLE_SECONDS: Final = 15  # between requests, and for the headers of one
HTTP_WRITE_BYTES: Final = 64 * KIB  # that a client must take within:
HTTP_WRITE_SECONDS: Final = 30
# In the kernel and not sent yet, for the socket to count as full; it takes more once half of
# this is left, which must be no more than what the client has to take in time.
HTTP_UNSENT_BYTES: Final = 2 * HTTP_WRITE_BYTES
GATEWAY_LISTING_ENTRIES_MAX: Final = 10_000  # on one page, 300 bytes of memory each
GATEWAY_SNIFF_SECONDS: Final = 0.25  # a range waits no longer for the file's beginning
GATEWAY_TYPES_KEPT: Final = 4096  # media types told from content, by CID
GATEWAY_RETRY_SECONDS: Final = 10  # what clients are told to wait after a 502, 503 or 504
HEALTH_SECONDS: Final = 5  # for the stores to answer /healthz
WORKER_FAILURES_BROKEN: Final = 3  # in a row, and background work counts as broken
API_PROGRESS_SECONDS: Final = 0.2  # between two progress lines
API_TREE_TASKS: Final = 256  # entries of a directory looked at together
API_TREE_BYTES: Final = 4 * MIB  # of their blocks, which wait in the cache
API_JOINED_BYTES: Final = 64 * KIB  # of a tree's small files, sent as one piece
API_JOINED_SECONDS: Final = 0.02
CLI_ANSWER_SECONDS: Final = 600  # without a byte from the daemon
DEVNET_NODES_MAX: Final = 64
DEVNET_UP_SECONDS: Final = 60  # for all processes to be ready, then again to be connected
DEVNET_DOWN_SECONDS: Final = 10

assert IDENTITY_BYTES_MAX <= DIGEST_BYTES_MAX
assert SMALL_BLOCK_BYTES < BLOCK_BYTES_MAX <= GET_BYTES_MAX
assert SEGMENT_FRAGMENTS_MAX >= FRAGMENTS_PER_STRIPE_MAX
assert YAMUX_FRAME_BYTES_MAX <= YAMUX_WINDOW_BYTES_INITIAL <= YAMUX_WINDOW_BYTES
assert BLOCK_BYTES_MAX < PEER_MEMORY_BYTES_MAX
assert READ_AHEAD_BYTES <= PEER_MEMORY_BYTES_MAX
assert READ_AHEAD_BYTES < READ_AHEAD_TOTAL_BYTES
assert FETCH_BATCH_BYTES_MAX * FETCH_STREAMS_PER_PEER <= PEER_MEMORY_BYTES_MAX
assert FETCH_BATCH_BLOCKS_MAX <= GET_BLOCKS_MAX
assert REPROVIDE_SECONDS * 2 < PROVIDER_SECONDS
assert REPROVIDE_SECONDS + PROVIDER_DOWNTIME_SECONDS_MAX < PROVIDER_SECONDS
assert 2 * (KEEPALIVE_SECONDS + KEEPALIVE_LOOK_SECONDS) < KEEPALIVE_TIMEOUT_SECONDS
assert KEEPALIVE_TIMEOUT_SECONDS + KEEPALIVE_LOOK_SECONDS < 30
assert HELLO_QUIET_SECONDS < HELLO_SECONDS
assert HELLO_SECONDS < LABELS_RETRY_SECONDS < LABELS_AGAIN_SECONDS
# To be asked must not keep an idle connection from making room.
assert LABELS_RETRY_SECONDS > 2 * INBOUND_IDLE_SECONDS
assert CONNECTIONS_MAX < BANDWIDTH_CLAIMS_MAX
assert HEDGE_SECONDS_MIN < HEDGE_SECONDS_UNKNOWN < HEDGE_SECONDS_MAX
assert REQUEST_SECONDS < PROGRESS_SECONDS < IDLE_STREAM_SECONDS
assert KAD_SUSPECT_SLOW_SECONDS_MIN < KAD_SLOW_SECONDS_MIN < KAD_SLOW_SECONDS_MAX
assert KAD_OVERDUE_SECONDS_MIN < KAD_SLOW_SECONDS_MIN
assert KAD_AROUND_AT_ONCE <= KAD_AROUND_MAX < KAD_BUCKET
assert KAD_SLOW_SECONDS_MAX < KAD_REQUEST_SECONDS < KAD_LOOKUP_SECONDS
assert KAD_POOLED_IDLE_SECONDS < KAD_SERVED_IDLE_SECONDS
assert KAD_PEERS_PER_REPLY_MAX <= KAD_BUCKET
assert KAD_BUCKET_WIDE_MAX <= KAD_TABLE_WIDE_MAX
assert KAD_TRUSTED_STARTS < KAD_CONCURRENCY
assert KAD_REPLICAS_WANTED <= KAD_BUCKET <= KAD_PROVIDE_LOOKUP_PEERS < KAD_QUERIES_MAX
assert PROVIDE_RETRY_SECONDS < PROVIDE_RETRY_SECONDS_MAX < REPROVIDE_SECONDS
assert FIND_RECORDS_MAX * RECORD_BYTES_MAX < CONTROL_BYTES_MAX
assert PEER_BUDGET_BYTES >= 8 * BLOCK_BYTES_MAX
assert SERVE_AHEAD_BYTES < BLOCK_BYTES_MAX <= SERVE_BATCH_BYTES
assert SERVED_WAIT_SECONDS < REQUEST_SECONDS
assert FRAGMENT_STREAMS_PER_PEER_MAX < PEER_STREAMS_SERVED_MAX
assert 2 * WORKING_SECONDS < SLOT_STALL_SECONDS < SLOT_SILENCE_SECONDS < REQUEST_SECONDS
assert SLOT_STALL_SECONDS < SLOT_LAST_SECONDS < 5 - 2 * SLOT_WATCH_SECONDS
assert SLOT_STALL_SECONDS + SLOT_STALL_AGAIN_SECONDS + 2 * SLOT_WATCH_SECONDS < 5  # for two of them
assert (
    BLOCK_BYTES_MAX / (BANDWIDTH_BYTES_PER_SECOND_MIN * BANDWIDTH_REPAIR_SHARE)
    < REPAIR_MESSAGE_SECONDS
)
# An upload shows itself between two steps.
assert MESSAGE_SECONDS < REPAIR_MESSAGE_SECONDS < KEEPER_SECONDS
assert CLOCK_SKEW_SECONDS_MAX + KEEPER_SECONDS < LEASE_SECONDS_MIN / 2 < LEASE_SECONDS
assert AT_RISK_SECONDS < HEALTH_CHECK_SECONDS < AWAY_SECONDS
assert SEGMENT_BYTES_MAX <= PLACEMENT_GROUP_BYTES
assert SEGMENT_FRAGMENTS_MAX * SEGMENT_FRAGMENT_BYTES * 8 <= SEGMENTS_BYTES_MAX
# Entries of a directory whose links lie about sizes.
assert API_TREE_TASKS * ENTRY_CONTENT_BYTES_MAX <= API_TREE_BYTES
