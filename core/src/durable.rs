//! When is written data safe from a loss of power?

use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;

/// File systems whose `syncfs` writes everything and waits for the device (magic numbers: linux/magic.h; ZFS and bcachefs: their own sources).
const TRUSTED: [u64; 9] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x2FC1_2FC1, 0xCA45_1A4E, 0x0102_1994, 0x4D44, 0x2011_BAB0];

/// Since Linux 5.8 `syncfs` says when writing back failed.
const SYNCFS_REPORTS_SINCE: (u32, u32) = (5, 8);

/// Whether one `syncfs` makes durable all that was written to the file system of `folder`, and says so when it could not. Otherwise each
/// file has to be flushed by itself.
///
/// # Errors
/// The file system cannot be asked.
pub(crate) fn syncfs_is_enough(folder: impl AsFd) -> io::Result<bool> {
    match rustix::fs::fstatfs(folder) {
        Ok(found) => Ok(TRUSTED.iter().any(|magic| u64::try_from(found.f_type) == Ok(*magic)) && kernel_is_at_least(SYNCFS_REPORTS_SINCE)),
        Err(Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}
