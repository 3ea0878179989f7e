//! Runs the double of Google Cloud Storage for scripts: `gcs-double --port 0 --bucket backup --key-file key.json`.

use clap::{Arg, ArgAction, Command, value_parser};
use immich_backup_testbed::gcs::{Double, Identity, Options, Permissions};
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Command::new("gcs-double")
        .about("A test double of Google Cloud Storage on 127.0.0.1, until it is told to stop")
        .arg(Arg::new("port").long("port").value_name("PORT").default_value("0").value_parser(value_parser!(u16)).help("0 for any that is free"))
        .arg(Arg::new("bucket").long("bucket").value_name("NAME").required(true))
        .arg(
            Arg::new("key-file")
                .long("key-file")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Where the service account's new key goes"),
        )
        .arg(Arg::new("no-delete").long("no-delete").action(ArgAction::SetTrue).help("The service account may create, get and list, not delete"))
        .arg(Arg::new("page").long("page").value_name("N").default_value("1000").value_parser(value_parser!(usize)).help("Entries in a page of a listing"))
        .get_matches();
    let text = |name: &str| arguments.get_one::<String>(name).cloned().unwrap_or_default();
    let double = Double::try_start(Options {
        bucket: text("bucket"),
        identities: vec![Identity::new("writer", if arguments.get_flag("no-delete") { Permissions::NO_DELETE } else { Permissions::ALL })],
        page_max: arguments.get_one("page").copied().unwrap_or(1000),
        port: arguments.get_one("port").copied().unwrap_or(0),
        ..Options::default()
    })?;
    if let Some(path) = arguments.get_one::<PathBuf>("key-file") {
        std::fs::write(path, double.key_json_for("writer", double.url()))?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", double.url())?;
    out.flush()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminated.recv() => (),
            _ = interrupted.recv() => (),
        }
        Ok(())
    })
}
