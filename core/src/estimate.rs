//! What the first year of a repository may cost, and what bringing all of it back would.
//!
//! A pure function of how much there is and of a dated table of prices: nothing is asked for, nothing is sent. Where it
//! has to guess, it guesses high: content that stands in the library twice is counted twice, and nothing is free of charge.

mod measure;
mod money;
pub mod prices;

pub use measure::{MeasureError, Measured, Source, measure};
pub use money::{GB, Money};

use crate::budget::{CHECKPOINT_FILES_MAX, PART_BYTES_MIN};
use crate::model::Class;
use crate::repository::vendor::Vendor;
use prices::{ClassPrices, OBJECT_BYTES_MINS, PRICES_AS_OF, Tariff};
use serde::Serialize;

/// A file that fills one goes in parts of this size, or in [`PARTS_MAX`] larger ones; and is read back so.
const PART_BYTES: u64 = PART_BYTES_MIN as u64;

/// No vendor takes more parts of one object.
const PARTS_MAX: u64 = 10_000;

/// Runs a year, one each night.
const RUNS_YEARLY: u64 = 365;

/// What a run without news writes: `format.json` again, which is refused, and three log entries.
const WRITES_PER_RUN: u64 = 4;

/// How many of those are log entries.
const ENTRIES_PER_RUN: u64 = 3;

/// Looks at the whole repository a year: a `verify` each week.
const VERIFIES_YEARLY: u64 = 52;

/// Objects that one request lists.
const LIST_PAGE: u64 = 1_000;

/// Log entries between two copies of the manifest.
const ENTRIES_PER_COPY: u64 = 64;

/// What a file takes in a copy of the manifest, and in the log; compressed, and rather more than less.
const MANIFEST_BYTES_PER_FILE: u64 = 150;
const LOG_BYTES_PER_FILE: u64 = 200;

const MONTHS: u32 = 12;

/// Files of one kind: how many, how large, and how many requests they take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests to store them.
    pub writes: u64,
    /// Requests to read them back, large ones in pieces.
    pub reads: u64,
    /// What they lack to each of [`OBJECT_BYTES_MINS`].
    lacking: [u64; OBJECT_BYTES_MINS.len()],
}

impl Amount {
    /// Counts one file in.
    pub fn add(&mut self, size_bytes: u64) {
        self.add_many(1, size_bytes);
    }

    /// Counts `count` files of one size in.
    pub fn add_many(&mut self, count: u64, size_bytes: u64) {
        self.files += count;
        self.bytes += count * size_bytes;
        if size_bytes < PART_BYTES {
            self.writes += count;
            self.reads += count;
        } else {
            let parts = size_bytes.div_ceil(PART_BYTES).min(PARTS_MAX);
            // One request begins, one ends. Where less is needed (Azure begins without one), the estimate is that much too high.
            self.writes += count * (parts + 2);
            self.reads += count * parts;
        }
        for (lacking, min) in self.lacking.iter_mut().zip(OBJECT_BYTES_MINS) {
            *lacking += count * min.saturating_sub(size_bytes);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.writes += other.writes;
        self.reads += other.reads;
        for (mine, theirs) in self.lacking.iter_mut().zip(other.lacking) {
            *mine += theirs;
        }
    }

    /// What is paid for where smaller objects count as `object_bytes_min`.
    fn billed_bytes(&self, object_bytes_min: u64) -> u64 {
        self.bytes + self.lacking.iter().zip(OBJECT_BYTES_MINS).find(|(_, min)| *min == object_bytes_min).map_or(0, |(lacking, _)| *lacking)
    }
}

/// What a library holds, as far as costs go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// What goes to the chosen class.
    pub originals: Amount,
    /// What Immich could make again, and markers: these stay in the standard class.
    pub others: Amount,
}

impl Contents {
    /// Counts one file in.
    pub fn add(&mut self, class: Class, size_bytes: u64) {
        match class {
            Class::Original => self.originals.add(size_bytes),
            Class::Derived | Class::Marker => self.others.add(size_bytes),
        }
    }

    /// Adds what another walker counted.
    pub fn merge(&mut self, other: &Self) {
        self.originals.merge(&other.originals);
        self.others.merge(&other.others);
    }

    fn files(&self) -> u64 {
        self.originals.files + self.others.files
    }
}

/// Costs with originals in one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The class.
    pub class: &'static str,
    /// Whether it is the one that was asked for.
    pub chosen: bool,
    /// Keeping everything for twelve months.
    #[serde(rename = "storage_cents")]
    pub storage: Money,
    /// Requests of the first backup.
    #[serde(rename = "first_backup_cents")]
    pub first_backup: Money,
    /// Requests of a run each night and a `verify` each week.
    #[serde(rename = "upkeep_cents")]
    pub upkeep: Money,
    /// All of that.
    #[serde(rename = "first_year_cents")]
    pub first_year: Money,
    /// A year after it, if the library stays as it is.
    #[serde(rename = "later_year_cents")]
    pub later_year: Money,
    /// Bringing everything back once, out of the provider's network.
    #[serde(rename = "restore_cents")]
    pub restore: Money,
    /// What is removed or replaced sooner is paid for until then.
    pub kept_days_min: u32,
    /// A smaller object is paid for as if it had this size.
    pub object_bytes_min: u64,
    /// What that adds to the bytes that are paid for.
    pub padding_bytes: u64,
}

/// The first year in every class that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Whose prices.
    pub provider: &'static str,
    /// Where.
    pub region: &'static str,
    /// Of all money here.
    pub currency: &'static str,
    /// When prices were looked up: year and month.
    pub prices_as_of: &'static str,
    /// Where they stand.
    pub source: &'static str,
    /// What they leave out.
    pub remark: Option<&'static str>,
    /// One row a class.
    pub classes: Vec<Row>,
}

/// What `contents` may cost at `vendor`, with originals in class `chosen` (else in the provider's standard class) and in each other one; `None` where
/// its prices are not known. No row is marked where the chosen class has no price.
#[must_use]
pub fn first_year(vendor: Vendor, chosen: Option<&str>, contents: &Contents) -> Option<Estimate> {
    let tariff = Tariff::of(vendor)?;
    let standard = tariff.classes.first()?;
    let chosen = chosen.unwrap_or(standard.name);
    let classes = tariff.classes.iter().map(|class| row(tariff, standard, class, class.name == chosen, contents)).collect();
    Some(Estimate {
        provider: vendor.name(),
        region: tariff.region,
        currency: tariff.currency,
        prices_as_of: PRICES_AS_OF,
        source: tariff.source,
        remark: tariff.remark,
        classes,
    })
}

fn row(tariff: &Tariff, standard: &ClassPrices, class: &ClassPrices, chosen: bool, contents: &Contents) -> Row {
    let Contents { originals, others } = contents;
    let entries = contents.files().div_ceil(CHECKPOINT_FILES_MAX as u64) + WRITES_PER_RUN;
    let copies = 1 + RUNS_YEARLY * ENTRIES_PER_RUN / ENTRIES_PER_COPY;
    let mut manifest = Amount::default();
    manifest.add_many(copies, contents.files() * MANIFEST_BYTES_PER_FILE);

    let originals_billed = originals.billed_bytes(class.object_bytes_min);
    let others_billed = others.billed_bytes(standard.object_bytes_min) + manifest.bytes + contents.files() * LOG_BYTES_PER_FILE;
    let unused = tariff.stored_bytes_min.saturating_sub(originals_billed + others_billed);
    let month = Money::of_bytes(originals_billed, class.storage_gb_month) + Money::of_bytes(others_billed + unused, standard.storage_gb_month);
    let storage = month.times(MONTHS);

    let first_backup = Money::of_requests(originals.writes, class.write_1000) + Money::of_requests(others.writes + entries, standard.write_1000);

    let runs = Money::of_requests(RUNS_YEARLY * WRITES_PER_RUN + manifest.writes, standard.write_1000)
        + Money::of_requests(RUNS_YEARLY, standard.list_1000)
        + Money::of_requests(RUNS_YEARLY, standard.read_1000);
    // `verify` reads the whole log, which has half of the year's entries on average.
    let pages = (contents.files() + entries).div_ceil(LIST_PAGE);
    let verifies = Money::of_requests(VERIFIES_YEARLY * pages, standard.list_1000)
        + Money::of_requests(VERIFIES_YEARLY * (entries + RUNS_YEARLY * ENTRIES_PER_RUN / 2), standard.read_1000)
        + Money::of_requests(VERIFIES_YEARLY, standard.write_1000);
    let upkeep = runs + verifies;

    let restore = Money::of_requests(originals.reads, class.read_1000)
        + Money::of_bytes(originals.bytes, class.retrieval_gb)
        + Money::of_requests(others.reads, standard.read_1000)
        + Money::of_bytes(others.bytes, standard.retrieval_gb)
        + Money::of_bytes(originals.bytes + others.bytes, tariff.egress_gb);

    Row {
        class: class.name,
        chosen,
        storage,
        first_backup,
        upkeep,
        first_year: storage + first_backup + upkeep,
        later_year: storage + upkeep,
        restore,
        kept_days_min: class.kept_days_min,
        object_bytes_min: class.object_bytes_min,
        padding_bytes: originals_billed - originals.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(originals: &[(u64, u64)], others: &[(u64, u64)]) -> Contents {
        let mut contents = Contents::default();
        for (count, size) in originals {
            contents.originals.add_many(*count, *size);
        }
        for (count, size) in others {
            contents.others.add_many(*count, *size);
        }
        contents
    }

    fn row_of(vendor: Vendor, class: &str, contents: &Contents) -> Row {
        let estimate = first_year(vendor, Some(class), contents).unwrap();
        let rows: Vec<_> = estimate.classes.iter().filter(|row| row.chosen).collect();
        assert_eq!(rows.len(), 1, "{class}");
        *rows[0]
    }

    /// What log and manifests take: 18 copies with 150 bytes a file, and 200 bytes of log.
    fn metadata_bytes(files: u64) -> u64 {
        files * (18 * 150 + 200)
    }

    #[test]
    fn a_hundred_thousand_photos_in_glacier_cost_what_the_price_list_says() {
        let photos = contents(&[(100_000, 4_000_000)], &[]);
        let row = row_of(Vendor::Amazon, "GLACIER_IR", &photos);
        // 400 GB at 0.004, and 0.29 GB of log and manifests at 0.023, for twelve months: 19.20 + 0.08004.
        assert_eq!(metadata_bytes(100_000), 290_000_000);
        assert_eq!(row.storage.to_string(), "19.28");
        // 100,000 at 0.02 a thousand, 104 log entries at 0.005: 2.00052.
        assert_eq!(row.first_backup.to_string(), "2.00");
        // Runs: 365 * 4 writes and 18 copies of the manifest (15 MB: one request) at 0.005 a thousand, 365 lists at 0.005,
        // 365 reads at 0.0004: 0.00739 + 0.001825 + 0.000146.
        // Verifies: 52 * 101 lists at 0.005, 52 * (104 + 547) reads at 0.0004, 52 writes: 0.02626 + 0.0135408 + 0.00026.
        assert_eq!(row.upkeep.to_string(), "0.05");
        // 100,000 reads at 0.01 a thousand, 400 GB at 0.03 retrieved and at 0.09 out: 1 + 12 + 36.
        assert_eq!(row.restore.to_string(), "49.00");
        assert_eq!(row.first_year.to_string(), "21.33");
        assert_eq!(row.later_year.to_string(), "19.33");
        assert_eq!((row.kept_days_min, row.padding_bytes), (90, 0));
    }

    #[test]
    fn the_same_photos_in_the_standard_class_cost_five_times_as_much_and_less_to_bring_back() {
        let photos = contents(&[(100_000, 4_000_000)], &[]);
        let row = row_of(Vendor::Amazon, "STANDARD", &photos);
        // 400.29 GB at 0.023 for twelve months.
        assert_eq!(row.storage.to_string(), "110.48");
        assert_eq!(row.first_backup.to_string(), "0.50");
        // 100,000 reads at 0.0004 a thousand and 400 GB at 0.09.
        assert_eq!(row.restore.to_string(), "36.04");
    }

    #[test]
    fn small_objects_are_paid_for_in_the_size_they_are_billed_at() {
        // 1,000,000 sidecars of 3,072 bytes: 3.072 GB become 131.072 GB.
        let sidecars = contents(&[(1_000_000, 3_072)], &[]);
        let cold = row_of(Vendor::Amazon, "GLACIER_IR", &sidecars);
        assert_eq!(cold.padding_bytes, 128_000_000_000);
        // 131.072 * 0.004 * 12 = 6.291456, and 2.9 GB of log and manifests at 0.023: 0.8004.
        assert_eq!(cold.storage.to_string(), "7.09");
        // (3.072 + 2.9) * 0.023 * 12 = 1.648272.
        assert_eq!(row_of(Vendor::Amazon, "STANDARD", &sidecars).storage.to_string(), "1.65");
    }

    #[test]
    fn derived_files_stay_in_the_standard_class() {
        // 100 GB of each: 100 * 0.0012 * 12 + 100 * 0.020 * 12 = 1.44 + 24.
        let both = contents(&[(1_000, 100_000_000)], &[(1_000, 100_000_000)]);
        let row = row_of(Vendor::Google, "ARCHIVE", &both);
        let metadata = Money::of_bytes(metadata_bytes(2_000), 20_000).times(12);
        assert_eq!(row.storage, Money::of_bytes(100 * GB, 1_200).times(12) + Money::of_bytes(100 * GB, 20_000).times(12) + metadata);
        // Each has 6 parts, one more request begins and one ends: 8,000 at 0.05 and 8,006 at 0.005 a thousand.
        assert_eq!(row.first_backup, Money::of_requests(8_000, 50_000) + Money::of_requests(8_006, 5_000));
        // 6,000 reads of each; 100 GB retrieved at 0.05; 200 GB out at 0.12.
        let read = Money::of_requests(6_000, 50_000) + Money::of_requests(6_000, 400);
        assert_eq!(row.restore, read + Money::of_bytes(100 * GB, 50_000) + Money::of_bytes(200 * GB, 120_000));
    }

    #[test]
    fn a_large_file_takes_a_request_a_part_and_two_more() {
        let requests = |size| {
            let mut amount = Amount::default();
            amount.add(size);
            (amount.writes, amount.reads)
        };
        assert_eq!(requests(0), (1, 1));
        assert_eq!(requests((16 << 20) - 1), (1, 1));
        assert_eq!(requests(16 << 20), (3, 1));
        assert_eq!(requests(512 << 20), (34, 32));
        assert_eq!(requests((512 << 20) + 1), (35, 33));
        // Parts grow so that there are no more than 10,000.
        assert_eq!(requests(1 << 40), (10_002, 10_000));
    }

    #[test]
    fn a_provider_with_a_least_bill_charges_it() {
        let little = contents(&[(1_000, 1_000_000)], &[]);
        // 1 TB at 7.99 for twelve months, and no requests.
        let row = row_of(Vendor::Wasabi, "STANDARD", &little);
        assert_eq!(
            (row.storage.to_string(), row.first_backup, row.upkeep, row.restore),
            ("95.88".to_owned(), Money::default(), Money::default(), Money::default())
        );
        assert_eq!(row_of(Vendor::Hetzner, "STANDARD", &little).storage.to_string(), "77.88");
        // 1.0029 GB at 0.00695 for twelve months.
        assert_eq!(row_of(Vendor::Backblaze, "STANDARD", &little).storage.to_string(), "0.08");
    }

    #[test]
    fn prices_that_are_not_known_are_not_made_up() {
        assert_eq!(first_year(Vendor::OtherS3, None, &Contents::default()), None);
        assert_eq!(first_year(Vendor::Directory, None, &Contents::default()), None);
        let estimate = first_year(Vendor::Amazon, Some("INTELLIGENT_TIERING"), &Contents::default()).unwrap();
        assert!(estimate.classes.iter().all(|row| !row.chosen));
    }

    #[test]
    fn originals_alone_go_to_the_chosen_class() {
        let mut contents = Contents::default();
        contents.add(Class::Original, 10);
        contents.add(Class::Derived, 20);
        contents.add(Class::Marker, 30);
        assert_eq!((contents.originals.bytes, contents.others.bytes), (10, 50));
        let mut twice = contents;
        twice.merge(&contents);
        assert_eq!((twice.originals.files, twice.others.files, twice.others.bytes), (2, 4, 100));
    }
}
