//! How long a proof takes, and what memory, for a library of so many assets with two derived files each.
//!
//! `proof-speed ASSETS FOLDER`: makes a manifest and an inventory in FOLDER (about 1.5 kB an asset), proves, and prints seconds and peak memory. Every
//! thousandth asset has moved, every ten-thousandth is missing. A second run in the same FOLDER takes what is there.
#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use immich_backup_core::database::inventory::{Builder, Inventory};
use immich_backup_core::database::location::Locations;
use immich_backup_core::model::{Digests, FilePath, FileTimes, Part, RepositoryId, RootPath, Sha1, Sha256, WriterId};
use immich_backup_core::prove::prove_at;
use immich_backup_core::repository::key;
use immich_backup_core::repository::log::{Fact, Head, Header, Listed, Read, StoredFact};
use immich_backup_core::repository::manifest::Manifest;
use jiff::Timestamp;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Facts in one log entry.
const FACTS: u64 = 1_000;

fn main() -> Outcome<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [assets, folder] = arguments.as_slice() else { return Err("usage: proof-speed ASSETS FOLDER".into()) };
    let (assets, folder) = (assets.parse::<u64>()?, Path::new(folder));
    let (manifest, inventory) = (folder.join("manifest.db"), folder.join("inventory.db"));
    if !manifest.exists() {
        let start = Instant::now();
        make_manifest(&manifest, assets)?;
        println!("manifest made in {:.1} s", start.elapsed().as_secs_f64());
    }
    if !inventory.exists() {
        let start = Instant::now();
        make_inventory(&inventory, assets)?;
        println!("inventory made in {:.1} s; peak memory with that {} MiB", start.elapsed().as_secs_f64(), peak_mib()?);
        println!("run it again: memory is that of the proof alone then");
    }
    let (manifest, inventory) = (Manifest::open_for_reading(&manifest)?, Inventory::open(&inventory)?);
    let start = Instant::now();
    let proof = prove_at(&manifest, manifest.head().sequence, Timestamp::now(), &inventory, &CancellationToken::new())?;
    println!("{}; {} moved; derived {:?}; {} untracked; read back: {}", proof.headline(), proof.moved, proof.derived, proof.untracked, proof.ages.read.assets);
    println!("proven in {:.2} s; peak memory {} MiB", start.elapsed().as_secs_f64(), peak_mib()?);
    Ok(())
}

/// From Linux: most memory that this process ever had.
fn peak_mib() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<u64>()? / 1_024)
}

/// The same for the same number, and as if by chance.
fn id(number: u64) -> Uuid {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = Sha256::of(&number.to_le_bytes()).0;
    Uuid::from_bytes([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

fn content(number: u64) -> Digests {
    let bytes = number.to_be_bytes();
    Digests { sha256: Sha256::of(&bytes), sha1: Sha1::of(&bytes) }
}

/// Below the media location: original, preview, thumbnail.
fn paths(number: u64) -> [String; 3] {
    let (owner, id) = (id(u64::MAX - number % 4), id(number).to_string());
    let (a, b) = (id.get(..2).unwrap_or_default(), id.get(2..4).unwrap_or_default());
    let thumbs = format!("thumbs/{owner}/{a}/{b}/{id}");
    [format!("upload/{owner}/{a}/{b}/{id}.jpg"), format!("{thumbs}_preview.jpeg"), format!("{thumbs}_thumbnail.webp")]
}

fn make_manifest(path: &Path, assets: u64) -> Outcome<()> {
    let start = Head { epoch: 0, sequence: 0, sha256: Sha256([0; 32]) };
    let mut manifest = Manifest::create(path, RepositoryId::random(), &start)?;
    let writer = WriterId::random();
    let mut apply = |facts: &[Fact]| {
        let before = manifest.head();
        let sequence = before.sequence + 1;
        let header = Header { format: 1, epoch: 0, sequence, previous_sha256: before.sha256, run: None, written_at: Timestamp::now(), writer };
        manifest.apply_parts(&header, facts, &Head { epoch: 0, sequence, sha256: before.sha256 }).map(|_| sequence)
    };
    let mut facts = Vec::new();
    let mut last = 0;
    for number in 0..assets {
        let [mut original, preview, thumbnail] = paths(number);
        if number % 1_000 == 1 {
            original = format!("library/admin/moved/{number}.jpg");
        }
        for (kind, path) in [original, preview, thumbnail].into_iter().enumerate() {
            if kind == 0 && number % 10_000 == 2 {
                continue;
            }
            let file = FilePath::library(RootPath::parse(&path)?);
            let home = key::home(&file).ok_or("no home")?;
            let digests = content(number + u64::try_from(kind)? * assets);
            let times = FileTimes { size_bytes: 5_000_000, mtime_ns: 1_700_000_000_000_000_000, ctime_ns: 1_700_000_000_000_000_000, mode: 0o644 };
            facts.push(Fact::Stored(StoredFact::new(&file, digests, &times, true, &home, None)));
        }
        if facts.len() as u64 >= FACTS {
            last = apply(&facts)?;
            facts.clear();
        }
    }
    last = apply(&facts)?.max(last);
    // As from a verification of a part each night.
    let at = Timestamp::now();
    apply(&[Fact::Listed(Listed { at, sequence: last, objects: 0, damaged: 0 })])?;
    for part in 0..300 {
        let sample = Part { of: 4_096, part };
        apply(&[Fact::Read(Read { at, sequence: last, sample, objects: 0, bytes: 0, damaged: 0 })])?;
    }
    Ok(())
}

fn make_inventory(path: &Path, assets: u64) -> Outcome<()> {
    let mut builder = Builder::create(path, Locations::new([]))?;
    builder.feed(b"--\n-- PostgreSQL database dump\n--\n\n")?;
    builder.feed(b"COPY public.asset (id, \"ownerId\", \"originalPath\", checksum, \"isExternal\", \"isOffline\", \"checksumAlgorithm\") FROM stdin;\n")?;
    let mut text = String::new();
    for number in 0..assets {
        let [original, ..] = paths(number);
        let owner = id(u64::MAX - number % 4);
        writeln!(text, "{}\t{owner}\t/data/{original}\t\\\\x{}\tf\tf\tsha1", id(number), content(number).sha1)?;
        if text.len() > 1 << 20 {
            builder.feed(text.as_bytes())?;
            text.clear();
        }
    }
    text.push_str("\\.\n\n\nCOPY public.asset_file (\"assetId\", type, path) FROM stdin;\n");
    for number in 0..assets {
        let [_, preview, thumbnail] = paths(number);
        let asset = id(number);
        writeln!(text, "{asset}\tpreview\t/data/{preview}\n{asset}\tthumbnail\t/data/{thumbnail}")?;
        if text.len() > 1 << 20 {
            builder.feed(text.as_bytes())?;
            text.clear();
        }
    }
    text.push_str("\\.\n\n\n--\n-- PostgreSQL database dump complete\n--\n\n");
    builder.feed(text.as_bytes())?;
    builder.finish()?;
    Ok(())
}
