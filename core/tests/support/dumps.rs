//! Dumps for tests: those of real servers.

use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What the fixtures were made by.
pub const VERSIONS: [&str; 2] = ["3.1.0", "1.135.3"];

/// The folder of a real server's fixture.
pub fn fixture(version: &str) -> PathBuf {
    let folder = std::env::var_os("IMMICH_BACKUP_FIXTURES").map_or_else(
        || {
            let here = Path::new(env!("CARGO_MANIFEST_DIR"));
            let mut folders = here.ancestors().map(|folder| folder.join("shared/fixtures"));
            folders.find(|folder| folder.is_dir()).expect("the fixtures are not beside the repository: set IMMICH_BACKUP_FIXTURES")
        },
        PathBuf::from,
    );
    folder.join(format!("immich-{version}"))
}

/// The text of its dump.
pub fn real(version: &str) -> Vec<u8> {
    let mut text = Vec::new();
    let file = std::fs::File::open(fixture(version).join("dump.sql.gz")).unwrap();
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut text).unwrap();
    text
}
