//! Sorting more than fits into memory: pieces are sorted there, written to one file, and merged from it.

use crate::budget::INVENTORY_SORT_BYTES;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

/// What each piece gets of memory while they are merged, at least. A piece for each 16 MiB: that is little, however many there are.
const READ_BYTES_MIN: usize = 8 << 10;
/// … and at most.
const READ_BYTES_MAX: usize = 256 << 10;

/// Takes records in any order.
#[derive(Debug)]
pub(super) struct Sorter {
    file: File,
    memory_bytes: usize,
    records: Vec<u8>,
    /// Where each record of `records` begins, and its length.
    places: Vec<(usize, usize)>,
    /// Where each piece begins in the file, and where it ends.
    pieces: Vec<(u64, u64)>,
    end: u64,
}

impl Sorter {
    /// Sorts with the help of `file`, which is empty.
    pub(super) fn new(file: File) -> Self {
        Self::with_memory(file, INVENTORY_SORT_BYTES)
    }

    fn with_memory(file: File, memory_bytes: usize) -> Self {
        Self { file, memory_bytes, records: Vec::new(), places: Vec::new(), pieces: Vec::new(), end: 0 }
    }

    pub(super) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        // `places` counts too.
        let held = self.records.len() + self.places.len() * size_of::<(usize, usize)>();
        if held + record.len() > self.memory_bytes && !self.places.is_empty() {
            self.spill()?;
        }
        self.places.push((self.records.len(), record.len()));
        self.records.extend_from_slice(record);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let Self { records, places, .. } = self;
        let record = |place: &(usize, usize)| records.get(place.0..place.0 + place.1).unwrap_or_default();
        places.sort_unstable_by(|a, b| record(a).cmp(record(b)));
        let mut writer = BufWriter::with_capacity(READ_BYTES_MAX, &self.file);
        let start = self.end;
        for place in places.iter() {
            let length = u32::try_from(place.1).map_err(io::Error::other)?;
            writer.write_all(&length.to_le_bytes())?;
            writer.write_all(record(place))?;
            self.end += u64::from(length) + 4;
        }
        writer.flush()?;
        drop(writer);
        self.pieces.push((start, self.end));
        records.clear();
        places.clear();
        Ok(())
    }

    /// All records, sorted by their bytes.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        if !self.places.is_empty() {
            self.spill()?;
        }
        self.records = Vec::new();
        self.places = Vec::new();
        let share = self.memory_bytes / self.pieces.len().max(1);
        let read_bytes = share.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        let mut sorted = Sorted { file: self.file, heads: BinaryHeap::with_capacity(self.pieces.len()), pieces: Vec::with_capacity(self.pieces.len()) };
        for (number, (start, end)) in self.pieces.iter().enumerate() {
            let mut piece = Piece { next: *start, end: *end, buffer: Vec::new(), read: 0, read_bytes };
            let mut record = Vec::new();
            if piece.read_record(&sorted.file, &mut record)? {
                sorted.heads.push(Reverse((record, number)));
            }
            sorted.pieces.push(piece);
        }
        Ok(sorted)
    }
}

#[derive(Debug)]
struct Piece {
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    read: usize,
    read_bytes: usize,
}

impl Piece {
    /// Reads the next record into `record`; `false` at the end.
    fn read_record(&mut self, file: &File, record: &mut Vec<u8>) -> io::Result<bool> {
        record.clear();
        if self.next == self.end && self.read == self.buffer.len() {
            return Ok(false);
        }
        let length = self.take(file, 4)?.first_chunk::<4>().copied().unwrap_or_default();
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
        record.extend_from_slice(self.take(file, length)?);
        Ok(true)
    }

    /// The next `length` bytes.
    fn take(&mut self, file: &File, length: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.read < length {
            self.fill(file, length)?;
        }
        let start = self.read;
        self.read += length;
        Ok(self.buffer.get(start..self.read).unwrap_or_default())
    }

    /// Has at least `wanted` bytes in the buffer.
    fn fill(&mut self, file: &File, wanted: usize) -> io::Result<()> {
        self.buffer.drain(..self.read);
        self.read = 0;
        let have = self.buffer.len();
        let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
        let more = self.read_bytes.max(wanted - have).min(left);
        self.buffer.resize(have + more, 0);
        file.read_exact_at(self.buffer.get_mut(have..).unwrap_or_default(), self.next)?;
        self.next += more as u64;
        if self.buffer.len() < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Records in the order of their bytes.
#[derive(Debug)]
pub(super) struct Sorted {
    file: File,
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
    pieces: Vec<Piece>,
}

impl Sorted {
    /// Shows the next record to `show`; `None` at the end.
    pub(super) fn next_with<T>(&mut self, show: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let shown = show(&head.0.0);
        let Reverse((record, number)) = &mut *head;
        let more = match self.pieces.get_mut(*number) {
            Some(piece) => piece.read_record(&self.file, record)?,
            None => false,
        };
        if !more {
            PeekMut::pop(head);
        }
        Ok(Some(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pieces_come_out_in_order_and_whole() {
        let mut sorter = Sorter::with_memory(tempfile::tempfile().unwrap(), 1_000);
        let mut expected = Vec::new();
        let mut state = 1_u64;
        for _ in 0..3_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let record = format!("{:x}", state >> (20 + state % 30)).into_bytes();
            sorter.push(&record).unwrap();
            expected.push(record);
        }
        // Longer than all the memory, and empty.
        for record in [vec![b'5'; 30_000], Vec::new()] {
            sorter.push(&record).unwrap();
            expected.push(record);
        }
        expected.sort();
        let mut sorted = sorter.finish().unwrap();
        assert!(sorted.pieces.len() > 20);
        let mut found = Vec::new();
        while let Some(record) = sorted.next_with(<[u8]>::to_vec).unwrap() {
            found.push(record);
        }
        assert!(found == expected);
    }

    #[test]
    fn nothing_sorts_to_nothing() {
        let mut sorted = Sorter::new(tempfile::tempfile().unwrap()).finish().unwrap();
        assert!(sorted.next_with(|_| ()).unwrap().is_none());
    }
}
