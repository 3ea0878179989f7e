//! The named limits that keep memory bounded, whatever the size of the library.
//!
//! Together they stay under 256 MiB of anonymous memory: transfers 112 MiB, SQLite about 48 MiB, queues and the
//! checkpoint a few MiB; the rest is the program itself and what the allocator keeps. With a database there is the inventory:
//! 16 MiB while it is filled and asked, 16 MiB more while it is sorted, which is before anything is transferred.

/// Bytes of file content that all workers together may hold at once: room for two large files in parts, and some small ones.
pub const TRANSFER_BYTES_MAX: usize = 112 << 20;

/// A file up to this size is read whole and stored by one request; a larger one is streamed.
pub const ONE_SHOT_BYTES_MAX: u64 = 16 << 20;

/// Parts of larger objects in S3 and Azure; larger where 10,000 of these do not suffice.
pub const PART_BYTES_MIN: usize = 16 << 20;

/// Parts of one object that are on their way at once.
pub const PARTS_IN_FLIGHT_MAX: usize = 2;

/// What is sent at a time of a larger object to Google: a multiple of 256 KiB, as it demands.
pub const SESSION_PIECE_BYTES: usize = 16 << 20;

/// What is asked for at a time when parts of one object are read at once, and how many.
pub const RANGE_BYTES: u64 = 8 << 20;

/// Ranges of one object that are read at once.
pub const RANGES_IN_FLIGHT_MAX: u32 = 3;

/// Listings that run at once, each over a part of the names, and pages of 1,000 names that each may be ahead.
pub const LISTINGS_IN_FLIGHT_MAX: usize = 8;

/// See [`LISTINGS_IN_FLIGHT_MAX`].
pub const LISTED_PAGES_AHEAD_MAX: usize = 2;

/// Objects that are listed while what the repository should hold is still collected, or is compared with those before.
pub const LISTED_AHEAD_MAX: usize = 32_768;

/// The piece in which larger files are read, hashed and handed to the store.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Pieces of one streamed file that wait between its reader and the store.
pub const CHUNKS_QUEUED_MAX: usize = 2;

/// What one streamed file takes out of [`TRANSFER_BYTES_MAX`]: the queued pieces, one being read, one being written.
pub const STREAM_BYTES: usize = CHUNK_BYTES * (CHUNKS_QUEUED_MAX + 2);

/// Text of a dump that is compressed at a time, each piece into a gzip member or zstd frame of its own.
pub const DUMP_BLOCK_BYTES: usize = 1 << 20;

/// Pieces of a dump that wait in each of its queues: for the compressor, for who reads the text, for the spool.
pub const DUMP_BLOCKS_QUEUED_MAX: usize = 2;

/// Threads that compress a dump.
pub const DUMP_THREADS_MAX: usize = 4;

/// What is kept of the end of what a program says on stderr.
pub const STDERR_TAIL_BYTES: usize = 16 << 10;

/// The answer to one question to the database, and what a program that is being written to may say meanwhile.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Restored files that wait for one barrier before they get their names, while as many more may be written; each holds its folder open.
pub const WRITTEN_FILES_MAX: usize = 256;

/// Bytes of restored files that wait for one barrier, while as many more may be written: twice that is what a kill costs at most.
pub const WRITTEN_BYTES_MAX: u64 = 512 << 20;

/// Paths that wait for each worker.
pub const QUEUE_PATHS_PER_WORKER: usize = 10;

/// Files named by one checkpoint at most.
pub const CHECKPOINT_FILES_MAX: usize = 1_000;

/// Files that a shard claims by one entry of the log at most, and their size: so much is read twice, the second time from the page cache.
pub const CLAIM_FILES_MAX: usize = 1_000;
/// See [`CLAIM_FILES_MAX`].
pub const CLAIM_BYTES_MAX: u64 = 256 << 20;
/// Larger files are claimed by their size instead of their content, and so read once.
pub const CLAIM_HASHED_BYTES_MAX: u64 = 256 << 20;
/// Longest time that a file waits for others to be claimed with it.
pub const CLAIM_WAIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Shards that a run may have. Each entry of the log is written after those of the others, so that more of them would wait for one another.
pub const SHARDS_MAX: u64 = 64;

/// Longest time between two checkpoints; they are the run's heartbeat.
pub const CHECKPOINT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);

/// A run that has not written to the log for so long is dead: three heartbeats.
pub const DEAD_AFTER: std::time::Duration = CHECKPOINT_INTERVAL.saturating_mul(3);

/// A log entry larger than this, compressed or not, is not ours.
pub const LOG_ENTRY_BYTES_MAX: u64 = 64 << 20;

/// Entries of the log that are fetched while one is looked at.
pub const LOG_ENTRIES_AHEAD_MAX: usize = 16;

/// Larger ones wait for their turn; what a run writes has a tenth of that.
pub const LOG_AHEAD_BYTES_MAX: u64 = 1 << 20;

/// Facts in a log entry. Runs write [`CHECKPOINT_FILES_MAX`] files' facts at a time.
pub const LOG_ENTRY_FACTS_MAX: usize = 100_000;

/// `format.json` is far smaller than this.
pub const IDENTITY_BYTES_MAX: u64 = 64 << 10;

/// Page cache of the one SQLite connection that writes.
pub const SQLITE_WRITER_CACHE_BYTES: usize = 24 << 20;

/// Page cache of each SQLite connection that reads.
pub const SQLITE_READER_CACHE_BYTES: usize = 2 << 20;

/// Page cache of an inventory's SQLite connection, while a dump is read into it and while it is asked.
pub const INVENTORY_CACHE_BYTES: usize = 16 << 20;

/// What an inventory sorts in memory at a time; the rest waits in a file.
pub const INVENTORY_SORT_BYTES: usize = 16 << 20;

/// The longest row of a dump that is looked at; rows that nobody wants may have any length.
pub const DUMP_ROW_BYTES_MAX: usize = 16 << 20;

/// SQLite connections that workers share for looking up known content.
pub const LOOKUP_CONNECTIONS_MAX: usize = 4;

/// Files that are being copied into a stage at once; each has a buffer of [`CHUNK_BYTES`] where the kernel does not copy.
pub const STAGE_THREADS_MAX: usize = 16;

/// The longest line of a stage's list: a path in which every byte is encoded, and numbers.
pub const STAGE_LINE_BYTES_MAX: u64 = 64 << 10;

/// Folders that wait to be walked; past that a walker descends at once instead of queueing.
pub const WALK_FOLDERS_QUEUED_MAX: usize = 16_384;

/// Rows read from the manifest at a time.
pub const MANIFEST_PAGE_ROWS: usize = 1_000;

/// Pages of standing files that are read ahead for a proof.
pub const STANDING_PAGES_AHEAD: usize = 4;

/// Objects that the log does not name and that a run remembers: of each run that died there is a checkpoint's worth at most. More are found one by
/// one, by the refused create.
pub const UNNAMED_MAX: usize = 20_000;

/// Names that one report (snapshot, summary, plan) lists of each kind; the rest is counted.
pub const NAMED_MAX: usize = 1_000;

/// Names of each verdict that a proof lists; the rest is counted. They go into the log with every snapshot.
pub const PROOF_NAMED_MAX: usize = 100;

/// Assets that lie where derived files lie, and are taken in spite of `--originals-only`. Normally there is none: Immich puts no asset there under another
/// name than `…-MP.mp4`.
pub const SCOPE_ASSETS_MAX: usize = 10_000;

/// Objects that a prune removes at once.
pub const DELETES_IN_FLIGHT_MAX: usize = 8;

/// Objects that a repair of the log names as rejected, at most: their list has to fit into an entry.
pub const REJECTED_NAMED_MAX: usize = 10_000;

/// Rounds of one repair of the log: each may bring something to light that was prepared for the epoch it opens.
pub const REPAIR_ROUNDS_MAX: u32 = 64;
