//! What providers charge, as published in September 2026 (R2's page: as its documentation had it that month).
//!
//! For orientation: one region each, list prices of the first tier, without taxes, discounts and free allowances. Who
//! changes a number changes [`PRICES_AS_OF`] as well, and the expectations in the tests below.

use crate::repository::vendor::Vendor;

/// When these prices were looked up.
pub const PRICES_AS_OF: &str = "2026-09";

/// The prices of one storage class. Money in millionths of the currency's unit; requests by the thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassPrices {
    /// The class, as [`crate::repository::storage_class::StorageClass`] writes it.
    pub name: &'static str,
    /// Keeping a GB for a month.
    pub storage_gb_month: u32,
    /// A thousand requests that write: PUT, each part, begin and end of an upload.
    pub write_1000: u32,
    /// A thousand requests that list.
    pub list_1000: u32,
    /// A thousand requests that read: GET, HEAD.
    pub read_1000: u32,
    /// Reading a GB, besides what leaves the provider.
    pub retrieval_gb: u32,
    /// What is removed or replaced sooner is paid for until then.
    pub kept_days_min: u32,
    /// A smaller object is paid for as if it had this size.
    pub object_bytes_min: u64,
}

/// What one provider charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tariff {
    /// Whose.
    pub vendor: Vendor,
    /// Where.
    pub region: &'static str,
    /// In what.
    pub currency: &'static str,
    /// Where this stands.
    pub source: &'static str,
    /// A GB that leaves for the internet, in millionths.
    pub egress_gb: u32,
    /// Less than this is paid for as this much.
    pub stored_bytes_min: u64,
    /// Classes that can be read at once; the first is where all but originals goes.
    pub classes: &'static [ClassPrices],
    /// What the numbers leave out.
    pub remark: Option<&'static str>,
}

const KIB: u64 = 1 << 10;

/// Sizes of small objects that some class rounds up to.
pub const OBJECT_BYTES_MINS: [u64; 3] = [4 * KIB, 64 * KIB, 128 * KIB];

/// All that is known.
///
/// Cross-checks where the provider's own page gives prices by region only in a browser: Amazon by its Price List API (quoted in public sources of August and
/// September 2026), Azure by its Retail Prices API, Google's operations of colder classes by bills (Coldline writes at 0.04 a thousand
/// in a multi-region, half of that in a region). Not cross-checked: writes at Google's Archive, retrieval at Azure's Cold.
pub const TARIFFS: &[Tariff] = &[
    // https://aws.amazon.com/s3/pricing/; minimum sizes and durations:
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html
    Tariff {
        vendor: Vendor::Amazon,
        region: "us-east-1",
        currency: "USD",
        source: "https://aws.amazon.com/s3/pricing/",
        egress_gb: 90_000,
        stored_bytes_min: 0,
        classes: &[
            ClassPrices {
                name: "STANDARD",
                storage_gb_month: 23_000,
                write_1000: 5_000,
                list_1000: 5_000,
                read_1000: 400,
                retrieval_gb: 0,
                kept_days_min: 0,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "STANDARD_IA",
                storage_gb_month: 12_500,
                write_1000: 10_000,
                list_1000: 5_000,
                read_1000: 1_000,
                retrieval_gb: 10_000,
                kept_days_min: 30,
                object_bytes_min: 128 * KIB,
            },
            ClassPrices {
                name: "ONEZONE_IA",
                storage_gb_month: 10_000,
                write_1000: 10_000,
                list_1000: 5_000,
                read_1000: 1_000,
                retrieval_gb: 10_000,
                kept_days_min: 30,
                object_bytes_min: 128 * KIB,
            },
            ClassPrices {
                name: "GLACIER_IR",
                storage_gb_month: 4_000,
                write_1000: 20_000,
                list_1000: 5_000,
                read_1000: 10_000,
                retrieval_gb: 30_000,
                kept_days_min: 90,
                object_bytes_min: 128 * KIB,
            },
        ],
        remark: Some("INTELLIGENT_TIERING depends on what is read when, and is not estimated; GLACIER and DEEP_ARCHIVE have to be thawed, and are refused"),
    },
    // https://cloud.google.com/storage/pricing; durations: https://cloud.google.com/storage/docs/storage-classes
    Tariff {
        vendor: Vendor::Google,
        region: "us-central1",
        currency: "USD",
        source: "https://cloud.google.com/storage/pricing",
        egress_gb: 120_000,
        stored_bytes_min: 0,
        classes: &[
            ClassPrices {
                name: "STANDARD",
                storage_gb_month: 20_000,
                write_1000: 5_000,
                list_1000: 5_000,
                read_1000: 400,
                retrieval_gb: 0,
                kept_days_min: 0,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "NEARLINE",
                storage_gb_month: 10_000,
                write_1000: 10_000,
                list_1000: 5_000,
                read_1000: 1_000,
                retrieval_gb: 10_000,
                kept_days_min: 30,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "COLDLINE",
                storage_gb_month: 4_000,
                write_1000: 20_000,
                list_1000: 5_000,
                read_1000: 10_000,
                retrieval_gb: 20_000,
                kept_days_min: 90,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "ARCHIVE",
                storage_gb_month: 1_200,
                write_1000: 50_000,
                list_1000: 5_000,
                read_1000: 50_000,
                retrieval_gb: 50_000,
                kept_days_min: 365,
                object_bytes_min: 0,
            },
        ],
        remark: Some("a single region; in a bucket whose default class is not STANDARD listings cost more"),
    },
    // https://azure.microsoft.com/pricing/details/storage/blobs/: block blobs, general purpose v2, flat namespace, LRS. Durations:
    // https://learn.microsoft.com/azure/storage/blobs/access-tiers-overview
    Tariff {
        vendor: Vendor::Azure,
        region: "East US 2, LRS",
        currency: "USD",
        source: "https://azure.microsoft.com/pricing/details/storage/blobs/",
        egress_gb: 87_000,
        stored_bytes_min: 0,
        classes: &[
            ClassPrices {
                name: "Hot",
                storage_gb_month: 18_400,
                write_1000: 5_000,
                list_1000: 5_000,
                read_1000: 400,
                retrieval_gb: 0,
                kept_days_min: 0,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "Cool",
                storage_gb_month: 10_000,
                write_1000: 10_000,
                list_1000: 5_000,
                read_1000: 1_000,
                retrieval_gb: 10_000,
                kept_days_min: 30,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "Cold",
                storage_gb_month: 3_600,
                write_1000: 18_000,
                list_1000: 5_000,
                read_1000: 10_000,
                retrieval_gb: 30_000,
                kept_days_min: 90,
                object_bytes_min: 0,
            },
        ],
        remark: Some("redundancy beyond one data centre costs more; Archive has to be thawed, and is refused"),
    },
    // https://www.backblaze.com/cloud-storage/pricing: transactions of classes A, B and C are free since 2026; what leaves is free up to three
    // times what is stored, and 0.01 a GB after that.
    Tariff {
        vendor: Vendor::Backblaze,
        region: "all regions",
        currency: "USD",
        source: "https://www.backblaze.com/cloud-storage/pricing",
        egress_gb: 0,
        stored_bytes_min: 0,
        classes: &[ClassPrices {
            name: "STANDARD",
            storage_gb_month: 6_950,
            write_1000: 0,
            list_1000: 0,
            read_1000: 0,
            retrieval_gb: 0,
            kept_days_min: 0,
            object_bytes_min: 0,
        }],
        remark: Some("up to three times what is stored leaves for free each month"),
    },
    // https://wasabi.com/pricing: 7.99 a TB since July 2026, at least 1 TB a month; 90 days:
    // https://docs.wasabi.com/docs/if-i-delete-a-file-within-90-days-after-storing-it-how-is-that-handled-from-a-billing-and-file-recovery-perspective
    Tariff {
        vendor: Vendor::Wasabi,
        region: "all regions",
        currency: "USD",
        source: "https://wasabi.com/pricing",
        egress_gb: 0,
        stored_bytes_min: 1_000_000_000_000,
        classes: &[ClassPrices {
            name: "STANDARD",
            storage_gb_month: 7_990,
            write_1000: 0,
            list_1000: 0,
            read_1000: 0,
            retrieval_gb: 0,
            kept_days_min: 90,
            object_bytes_min: 4 * KIB,
        }],
        remark: Some("at least 1 TB is billed; in a month no more may leave than is stored"),
    },
    // https://developers.cloudflare.com/r2/pricing/
    Tariff {
        vendor: Vendor::Cloudflare,
        region: "all regions",
        currency: "USD",
        source: "https://developers.cloudflare.com/r2/pricing/",
        egress_gb: 0,
        stored_bytes_min: 0,
        classes: &[
            ClassPrices {
                name: "STANDARD",
                storage_gb_month: 15_000,
                write_1000: 4_500,
                list_1000: 4_500,
                read_1000: 360,
                retrieval_gb: 0,
                kept_days_min: 0,
                object_bytes_min: 0,
            },
            ClassPrices {
                name: "STANDARD_IA",
                storage_gb_month: 10_000,
                write_1000: 9_000,
                list_1000: 9_000,
                read_1000: 900,
                retrieval_gb: 10_000,
                kept_days_min: 30,
                object_bytes_min: 0,
            },
        ],
        remark: Some("10 GB, 1 million writes and 10 million reads of STANDARD are free each month; usage is rounded up to whole millions and GB"),
    },
    // https://www.hetzner.com/storage/object-storage/: 6.49 a month without VAT with 1 TB stored and 1 TB of traffic in it (since April 2026); more at about the
    // same price a TB, traffic at 1 a TB.
    Tariff {
        vendor: Vendor::Hetzner,
        region: "all locations",
        currency: "EUR",
        source: "https://www.hetzner.com/storage/object-storage/",
        egress_gb: 1_000,
        stored_bytes_min: 1_000_000_000_000,
        classes: &[ClassPrices {
            name: "STANDARD",
            storage_gb_month: 6_490,
            write_1000: 0,
            list_1000: 0,
            read_1000: 0,
            retrieval_gb: 0,
            kept_days_min: 0,
            object_bytes_min: 64 * KIB,
        }],
        remark: Some("the base price has 1 TB in it, stored and leaving"),
    },
];

impl Tariff {
    /// The prices of `vendor`, if they are known.
    #[must_use]
    pub fn of(vendor: Vendor) -> Option<&'static Self> {
        TARIFFS.iter().find(|tariff| tariff.vendor == vendor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::storage_class::StorageClass;
    use std::path::Path;

    #[test]
    fn a_class_with_a_price_is_one_that_the_provider_has() {
        for tariff in TARIFFS {
            let known = StorageClass::known(tariff.vendor);
            assert_eq!(tariff.classes.first().map(|class| class.name), known.first().copied(), "{}", tariff.vendor.name());
            for class in tariff.classes {
                assert!(known.contains(&class.name), "{} {}", tariff.vendor.name(), class.name);
                assert!(class.object_bytes_min == 0 || OBJECT_BYTES_MINS.contains(&class.object_bytes_min));
            }
            for name in known.iter().filter(|name| **name != "INTELLIGENT_TIERING") {
                assert!(tariff.classes.iter().any(|class| class.name == *name), "{} {name} has no price", tariff.vendor.name());
            }
        }
    }

    /// Rows of the table in docs/stores.md: provider, class, days, smallest billed object.
    fn documented() -> Vec<[String; 4]> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/stores.md");
        let text = std::fs::read_to_string(path).unwrap();
        let section = text.split("\n## Storage classes").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
        rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
            [cells[1].clone(), cells[2].clone(), cells[3].clone(), cells[4].clone()]
        })
        .collect()
    }

    #[test]
    fn every_class_of_the_documentation_has_these_prices() {
        let documented = documented();
        let priced: Vec<_> = TARIFFS
            .iter()
            .flat_map(|tariff| tariff.classes.iter().map(move |class| (tariff, class)))
            .map(|(tariff, class)| {
                let days = if class.kept_days_min == 0 { "-".to_owned() } else { format!("{} days", class.kept_days_min) };
                let smallest = if class.object_bytes_min == 0 { "-".to_owned() } else { format!("{} KiB", class.object_bytes_min / KIB) };
                [tariff.vendor.name().to_owned(), class.name.to_owned(), days, smallest]
            })
            .collect();
        assert_eq!(documented, priced, "left: docs/stores.md; right: this table");
    }
}
