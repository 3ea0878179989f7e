//! Makes a small Immich media location with valid pictures and videos in it, and the database that goes with it, the same on
//! every machine, so that anybody can try a backup without owning an Immich.

mod database;
mod files;
mod library;
mod movie;
mod photo;
mod scene;

use std::path::PathBuf;

use clap::{Arg, Command, value_parser};

fn main() -> anyhow::Result<()> {
    let matches = Command::new("sample-library")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Makes a small Immich media location to try immich-backup on")
        .arg(Arg::new("DIR").help("Folder to make it in; new or empty").required(true).value_parser(value_parser!(PathBuf)))
        .arg(
            Arg::new("photos").long("photos").value_name("N").help("How many photos").default_value("24").value_parser(value_parser!(u32).range(1..=1_000_000)),
        )
        .arg(
            Arg::new("database")
                .long("database")
                .value_name("FILE")
                .help("Also write what Immich's database says of it, as SQL that psql loads into an empty database; a new file")
                .value_parser(value_parser!(PathBuf)),
        )
        .get_matches();
    let (Some(folder), Some(photos)) = (matches.get_one::<PathBuf>("DIR"), matches.get_one::<u32>("photos")) else {
        anyhow::bail!("clap handed over neither a folder nor a number");
    };

    let sql = matches.get_one::<PathBuf>("database");
    let files = files::Folder::create(folder)?;
    let mut out = library::Sample { files, database: database::Database::create(sql.map(PathBuf::as_path))? };
    library::generate(&mut out, *photos)?;
    out.database.finish()?;
    tell(&format!("{photos} photos in {} files, {} KiB: {}", out.files.files, out.files.bytes / 1024, folder.display()));
    if let Some(sql) = sql {
        tell(&format!("what Immich's database says of them: {}", sql.display()));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "a program of its own: its lines of output are its answer")]
fn tell(line: &str) {
    println!("{line}");
}
