//! Makes a large Immich database for measurements: `immich-database --url postgresql://postgres:password@127.0.0.1:5432/immich --assets 250000`.

use clap::{Arg, ArgAction, Command, value_parser};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::fill_at;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Command::new("immich-database")
        .about("Makes an Immich 3.1 database out of an empty one: the fixture's, and as many assets more as are asked for, without files")
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .default_value("postgresql://")
                .help("The empty database; what is not said here is taken from PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE"),
        )
        .arg(
            Arg::new("assets")
                .long("assets")
                .value_name("N")
                .default_value("250000")
                .value_parser(value_parser!(u64).range(..=1_000_000))
                .help("250,000 make about 2 GB"),
        )
        .arg(Arg::new("vector-indexes").long("vector-indexes").action(ArgAction::SetTrue).help("Make the indexes of vectors too, which takes longest"))
        .get_matches();
    let Some(fixture) = Fixture::open(IMMICH_3) else { return Err("the schema is taken from the fixture".into()) };
    let url = arguments.get_one::<String>("url").map_or("postgresql://", String::as_str);
    fill_at(url, fixture.dump(), arguments.get_one("assets").copied().unwrap_or_default(), arguments.get_flag("vector-indexes"))?;
    Ok(())
}
