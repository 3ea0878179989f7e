//! Takes one dump into a spool file and says how long that took: `dump-speed URL FOLDER_OF_PROGRAMS SPOOL gz|zst`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a measurement")]

use immich_backup_core::database::client::Client;
use immich_backup_core::database::compress::Compression;
use immich_backup_core::database::connection::Connection;
use immich_backup_core::database::dump::{Destination, DumpPlan, LOCK_WAIT_DEFAULT, SinkError, take};
use immich_backup_core::event::{Monitor, Silent};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let [url, programs, spool, kind] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else { panic!("URL PROGRAMS SPOOL gz|zst") };
    let client = Client::local(Connection::parse(url).unwrap(), vec![programs.into()]);
    let plan = DumpPlan {
        application: "dump-speed".to_owned(),
        compression: if kind == "zst" { Compression::Zstd } else { Compression::Gzip },
        destination: Destination::Spool(spool.into()),
        lock_wait: LOCK_WAIT_DEFAULT,
        estimated_bytes: None,
    };
    let lines = Arc::new(AtomicUsize::new(0));
    let sinks = || {
        let lines = Arc::clone(&lines);
        Ok(move |text: &[u8]| -> Result<(), SinkError> {
            lines.fetch_add(memchr::memchr_iter(b'\n', text).count(), Ordering::Relaxed);
            Ok(())
        })
    };
    let monitor: Arc<dyn Monitor> = Arc::new(Silent);
    let began = Instant::now();
    let (dumped, _) = take(&client, &plan, sinks, &monitor, &CancellationToken::new()).await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    println!("{seconds:.2} s, {} bytes of text in {} lines, {} bytes stored", dumped.plain_bytes, lines.load(Ordering::Relaxed), dumped.size_bytes);
}
