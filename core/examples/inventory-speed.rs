//! How fast a dump's text is read into an inventory: `inventory-speed [--assets N] [--vectors] [--folder PATH]`.
//!
//! Makes up the dump of a library of N assets as `pg_dump` writes one for Immich 3 (an asset, its exif, three files, a face; with `--vectors` also
//! the two tables of vectors, 512 numbers a row), and feeds it in pieces of 64 KiB. Only the feeding is timed, not the making;
//! the table of tables is by the processor's time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints, and may fail loudly")]

use immich_backup_core::database::inventory::{Builder, InventoryError};
use immich_backup_core::database::location::Locations;
use std::io::Write as _;
use std::time::{Duration, Instant};

const PIECE_BYTES: usize = 64 << 10;

/// Feeds what is written to it, and keeps the time of that.
struct Feed {
    builder: Builder,
    buffer: Vec<u8>,
    bytes: u64,
    elapsed: Duration,
    /// Processor's time of the same.
    busy: Duration,
}

/// Processor's time that this thread has had.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default())
}

impl Feed {
    fn flush_full(&mut self, least: usize) {
        while self.buffer.len() >= least.max(1) {
            let length = self.buffer.len().min(PIECE_BYTES);
            let piece: Vec<u8> = self.buffer.drain(..length).collect();
            self.bytes += length as u64;
            let (start, before) = (Instant::now(), busy());
            self.builder.feed(&piece).unwrap();
            self.elapsed += start.elapsed();
            self.busy += busy() - before;
        }
    }

    fn copy(&mut self, table: &str, columns: &str, rows: u64, mut row: impl FnMut(&mut Vec<u8>, u64)) {
        let before = (self.bytes + self.buffer.len() as u64, self.busy);
        write!(self.buffer, "--\n-- Data for Name: {table}; Type: TABLE DATA; Schema: public; Owner: postgres\n--\n\n").unwrap();
        writeln!(self.buffer, "COPY public.{table} ({columns}) FROM stdin;").unwrap();
        for number in 0..rows {
            row(&mut self.buffer, number);
            self.buffer.push(b'\n');
            if self.buffer.len() >= 16 * PIECE_BYTES {
                self.flush_full(PIECE_BYTES);
            }
        }
        self.buffer.extend_from_slice(b"\\.\n\n\n");
        self.flush_full(PIECE_BYTES);
        let megabytes = (self.bytes + self.buffer.len() as u64 - before.0) as f64 / 1e6;
        let seconds = (self.busy - before.1).as_secs_f64();
        println!("  {table:<16} {rows:>9} rows {megabytes:>9.1} MB {seconds:>7.2} s {:>8.0} MB/s", megabytes / seconds.max(1e-9));
    }
}

/// A different id for each kind and number, in no order.
fn id(kind: u64, number: u64) -> String {
    let mixed = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ kind.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let low = mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    format!("{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}", mixed >> 32, (mixed >> 16) & 0xFFFF, mixed & 0xFFF, low >> 52, low & 0xFFFF_FFFF_FFFF)
}

fn vector(number: u64) -> String {
    let mut state = number.wrapping_add(7);
    let numbers: Vec<String> = (0..512)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{:.9}", (state >> 33) as f64 / f64::from(1 << 30) / 8.0 - 0.125)
        })
        .collect();
    format!("[{}]", numbers.join(","))
}

fn main() -> Result<(), InventoryError> {
    let mut arguments = std::env::args().skip(1);
    let (mut assets, mut vectors, mut folder) = (100_000_u64, false, std::env::temp_dir());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--assets" => assets = arguments.next().and_then(|text| text.parse().ok()).expect("--assets takes a number"),
            "--vectors" => vectors = true,
            "--folder" => folder = arguments.next().expect("--folder takes a path").into(),
            other => panic_with(other),
        }
    }
    let path = folder.join(format!("inventory-speed-{}.db", std::process::id()));
    let mut feed = Feed { builder: Builder::create(&path, Locations::new([]))?, buffer: Vec::new(), bytes: 0, elapsed: Duration::ZERO, busy: Duration::ZERO };
    let user = |number: u64| id(1, number % 4);
    let asset = |number: u64| id(2, number);
    let split = |id: &str| format!("{}/{}", id.get(..2).unwrap_or_default(), id.get(2..4).unwrap_or_default());
    let time = "2024-03-27 17:10:10.123456+00";
    writeln!(feed.buffer, "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 14.19\n-- Dumped by pg_dump version 14.19\n").unwrap();
    feed.copy("album", "id, \"albumName\", \"createdAt\", \"deletedAt\"", assets / 500 + 1, |to, number| {
        write!(to, "{}\tAlbum {number}\t{time}\t\\N", id(3, number)).unwrap();
    });
    feed.copy("album_asset", "\"albumId\", \"assetId\", \"createdAt\"", assets / 2, |to, number| {
        write!(to, "{}\t{}\t{time}", id(3, number / 250), asset(number * 2)).unwrap();
    });
    let columns = "id, \"ownerId\", type, \"originalPath\", \"fileCreatedAt\", \"fileModifiedAt\", \"isFavorite\", duration, checksum, \"livePhotoVideoId\", \
                   \"updatedAt\", \"createdAt\", \"originalFileName\", thumbhash, \"isOffline\", \"libraryId\", \"isExternal\", \"deletedAt\", \"localDateTime\", \
                   \"stackId\", \"duplicateId\", status, \"updateId\", visibility, width, height, \"isEdited\", \"checksumAlgorithm\"";
    feed.copy("asset", columns, assets, |to, number| {
        let (asset, owner, file) = (asset(number), user(number), id(4, number));
        write!(
            to,
            "{asset}\t{owner}\tIMAGE\t/data/upload/{owner}/{}/{file}.jpg\t{time}\t{time}\tf\t\\N\t\\\\x{}\t\\N\t{time}\t{time}\tIMG_{number:08}.jpg\t\\\\x9b17063d92bb67767089878578686879fe97ebef68\tf\t\\N\tf\t\\N\t{time}\t\\N\t\\N\tactive\t{}\ttimeline\t4032\t3024\tf\tsha1",
            split(&file),
            format!("{}{}", id(5, number), id(6, number)).replace('-', "").get(..40).unwrap_or_default(),
            id(7, number),
        )
        .unwrap();
    });
    feed.copy("asset_exif", "\"assetId\", make, model, \"dateTimeOriginal\", latitude, longitude, city, country, description, \"lensModel\"", assets, |to, number| {
        write!(
            to,
            "{}\tGoogle\tPixel 8 Pro\t{time}\t48.2081{:05}\t16.3738{:05}\tVienna\tAustria\tA day at the river; nothing special \\\\ at all\tPixel 8 Pro back camera 6.9mm f/1.68",
            asset(number),
            number % 99_999,
            number % 77_777
        )
        .unwrap();
    });
    let columns = "\"assetId\", \"personId\", \"imageWidth\", \"imageHeight\", \"boundingBoxX1\", id, \"sourceType\", \"deletedAt\"";
    feed.copy("asset_face", columns, assets, |to, number| {
        let person = if number % 3 == 0 { id(8, number % 200) } else { "\\N".to_owned() };
        write!(to, "{}\t{person}\t1440\t1080\t{}\t{}\tmachine-learning\t\\N", asset(number), number % 999, id(9, number)).unwrap();
    });
    let columns = "id, \"assetId\", \"createdAt\", \"updatedAt\", type, path, \"updateId\", \"isEdited\", \"isProgressive\", \"isTransparent\"";
    feed.copy("asset_file", columns, assets * 3, |to, number| {
        let (asset, owner) = (asset(number / 3), user(number / 3));
        let kind = ["preview", "thumbnail", "fullsize"].get(usize::try_from(number % 3).unwrap_or_default()).copied().unwrap_or_default();
        let file = id(10, number);
        write!(to, "{file}\t{asset}\t{time}\t{time}\t{kind}\t/data/thumbs/{owner}/{}/{asset}_{kind}.jpeg\t{file}\tf\tf\tf", split(&asset)).unwrap();
    });
    let known: Vec<String> = (0..64).map(vector).collect();
    let vector = |number: u64| usize::try_from(number % 64).ok().and_then(|at| known.get(at)).map_or("", String::as_str);
    if vectors {
        feed.copy("face_search", "\"faceId\", embedding", assets, |to, number| write!(to, "{}\t{}", id(9, number), vector(number)).unwrap());
    }
    feed.copy("person", "id, \"ownerId\", name, \"thumbnailPath\"", 200, |to, number| {
        write!(to, "{}\t{}\tPerson {number}\t/data/thumbs/{}/p/{number}.jpeg", id(8, number), user(number), user(number)).unwrap();
    });
    if vectors {
        feed.copy("smart_search", "\"assetId\", embedding", assets, |to, number| write!(to, "{}\t{}", asset(number), vector(number + 1)).unwrap());
    }
    feed.copy("system_metadata", "key, value", 1, |to, _| to.extend_from_slice(b"MediaLocation\t{\"location\": \"/data\"}"));
    feed.copy("\"user\"", "id, email, name, \"isAdmin\"", 4, |to, number| write!(to, "{}\tuser{number}@lab.test\tUser {number}\tf", user(number)).unwrap());
    feed.copy("version_history", "id, \"createdAt\", version", 1, |to, _| write!(to, "{}\t{time}\t3.1.0", id(11, 0)).unwrap());
    feed.buffer.extend_from_slice(b"--\n-- PostgreSQL database dump complete\n--\n\n");
    feed.flush_full(1);

    let Feed { builder, bytes, elapsed, busy: busy_feeding, .. } = feed;
    let (start, before) = (Instant::now(), busy());
    let inventory = builder.finish()?;
    let (finish, busy_finishing) = (start.elapsed(), busy() - before);
    let (start, before) = (Instant::now(), busy());
    let (mut cursor, mut named) = (None, 0);
    loop {
        let (page, next) = inventory.named_page(cursor)?;
        named += page.len();
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    let (pages, busy_paging) = (start.elapsed(), busy() - before);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or("unknown", str::trim);
    let megabytes = bytes as f64 / 1e6;
    println!("assets {}, files {named}, text {megabytes:.0} MB", inventory.summary().assets);
    let line =
        |what: &str, wall: Duration, busy: Duration| println!("{what:<7} {:>7.2} s, of these {:.2} s of the processor", wall.as_secs_f64(), busy.as_secs_f64());
    line("feed", elapsed, busy_feeding);
    line("finish", finish, busy_finishing);
    line("pages", pages, busy_paging);
    let rate = |time: Duration| megabytes / time.as_secs_f64();
    println!(
        "MB/s of feeding {:.0}, of one core {:.0}; with finish {:.0}, of one core {:.0}",
        rate(elapsed),
        rate(busy_feeding),
        rate(elapsed + finish),
        rate(busy_feeding + busy_finishing)
    );
    let file = std::fs::metadata(inventory.path()).map_or(0, |metadata| metadata.len()) as f64 / 1e6;
    println!("inventory {file:.0} MB; peak RSS {peak}");
    inventory.remove()
}

#[allow(clippy::panic, reason = "a benchmark may")]
fn panic_with(argument: &str) -> ! {
    panic!("`{argument}` is not known: [--assets N] [--vectors] [--folder PATH]")
}
