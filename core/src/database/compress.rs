//! Compressing a dump by several threads, and undoing it.

use crate::budget::DUMP_THREADS_MAX;
use crate::task::blocking;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use std::io::{self, BufRead, Read, Write as _};
use tokio::sync::mpsc;

/// Of zlib-rs: the level of `gzip` itself, and about its size.
const GZIP_LEVEL: u32 = 6;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// The largest window that a zstd frame may want to be read with: 32 MiB. Ours want 2 MiB at most.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

/// How a dump is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// As Immich does it itself, and everybody can read.
    #[default]
    Gzip,
    /// Smaller and several times faster.
    Zstd,
}

impl Compression {
    /// The end of a file's name: `gz` or `zst`.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Gzip => "gz",
            Self::Zstd => "zst",
        }
    }

    /// What the first bytes of a file say: their magic numbers are those of RFC 1952 and RFC 8878 (also a skippable frame).
    #[must_use]
    pub fn of_magic(start: &[u8]) -> Option<Self> {
        match start {
            [0x1F, 0x8B, ..] => Some(Self::Gzip),
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// `text` as a gzip member or a zstd frame: a file of several of these, one after the other, is a file of all their text (RFC 1952, 2.2;
    /// RFC 8878, 3).
    pub(crate) fn block(self, text: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut member = flate2::write::GzEncoder::new(Vec::with_capacity(text.len() / 2), flate2::Compression::new(GZIP_LEVEL));
                member.write_all(text)?;
                member.finish()
            }
            Self::Zstd => {
                let mut frame = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                frame.include_checksum(true)?;
                frame.compress(text)
            }
        }
    }

    /// Reads the text of `source`, to its very end: what follows the last member or frame, or is missing from it, is an error.
    pub(crate) fn reader<'a, R: BufRead + 'a>(self, source: R) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        })
    }
}

/// `blocks` compressed by as many threads as there are cores, up to [`DUMP_THREADS_MAX`], in their order.
pub(crate) fn compressed(blocks: mpsc::Receiver<Bytes>, compression: Compression) -> impl Stream<Item = io::Result<Vec<u8>>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(DUMP_THREADS_MAX);
    let blocks = futures_util::stream::unfold(blocks, |mut blocks| async move { blocks.recv().await.map(|block| (block, blocks)) });
    // Spawned when it is taken from the queue, not when its turn to be given out comes.
    blocks.map(move |block| tokio::spawn(blocking(move || compression.block(&block)))).buffered(threads).map(crate::task::joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that compresses about as dumps do, the same each time.
    fn text(len: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut text = Vec::new();
        while text.len() < len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.extend_from_slice(format!("{:x}\t/data/upload/{:x}.jpg\n", state >> 20, state >> 40).as_bytes());
        }
        text
    }

    fn read(compression: Compression, stored: &[u8]) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        compression.reader(stored)?.read_to_end(&mut found)?;
        Ok(found)
    }

    #[tokio::test]
    async fn blocks_by_several_threads_make_up_one_file_in_order() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let text = text(700_001);
            let (blocks, queue) = mpsc::channel(1);
            let pieces: Vec<_> = text.chunks(10_000).map(Bytes::copy_from_slice).collect();
            let feed = tokio::spawn(async move {
                for piece in pieces {
                    blocks.send(piece).await.unwrap();
                }
            });
            let stored: Vec<_> = compressed(queue, compression).map(Result::unwrap).collect().await;
            feed.await.unwrap();
            let stored = stored.concat();
            assert_eq!(Compression::of_magic(&stored), Some(compression));
            assert!(stored.len() < text.len() * 2 / 3);
            assert!(read(compression, &stored).unwrap() == text);
        }
    }

    #[test]
    fn what_is_cut_flipped_or_followed_by_something_is_an_error() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let first = compression.block(&text(50_000)).unwrap();
            let boundary = first.len();
            let stored = [first, compression.block(&text(30_000)).unwrap()].concat();
            for end in (1..stored.len()).step_by(97).chain([3, 9, stored.len() - 1]).filter(|end| *end != boundary) {
                assert!(read(compression, &stored[..end]).is_err(), "{compression:?} cut to {end}");
            }
            let mut flipped = stored.clone();
            flipped[boundary / 2] ^= 1;
            assert!(read(compression, &flipped).is_err());
            for garbage in [&b"\0"[..], b"more", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"] {
                assert!(read(compression, &[&stored[..], garbage].concat()).is_err(), "{compression:?} and {garbage:?}");
            }
        }
    }

    #[test]
    fn a_frame_that_wants_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&text(1_000)).unwrap();
        assert!(read(Compression::Zstd, &encoder.finish().unwrap()).is_err());
    }
}
