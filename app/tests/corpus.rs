//! Configuration files that fuzzers found worth keeping, and seeds for them (`fuzz/`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, dead_code, reason = "a test may")]

#[path = "../src/cli.rs"]
mod cli;
#[path = "../src/config.rs"]
mod config;
#[path = "../../fuzz/src/configuration.rs"]
mod configuration;
#[path = "../src/settings.rs"]
mod settings;

use std::fs;
use std::path::Path;

const SEEDS: [(&str, &str); 2] = [
    (
        "usual",
        "repository = \"s3://bucket/immich\"\nlibrary = \"/srv/immich\"\nworkers = 8\nexclude = [\"*.tmp\", 'cache/**']\noriginals_only = false\nmax-age = \"26h\"\n\n[database]\nurl = \"postgresql://immich@db/immich\"\n",
    ),
    ("wrong", "workers = { a = 1 }\nworkers = 2\nwait = 1979-05-27\nlabel = \"\"\n[a.b]\nc = nan\n"),
];

#[test]
fn every_kept_configuration_is_taken_or_refused_as_it_should_be() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/configuration");
    for (name, text) in SEEDS {
        let path = corpus.join(format!("seed-{name}"));
        if std::env::var_os("IMMICH_BACKUP_WRITE_SEEDS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(&path, text).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "{}", path.display());
    }
    let mut inputs: Vec<_> = fs::read_dir(&corpus).unwrap().map(|input| input.unwrap().path()).collect();
    inputs.sort();
    for input in inputs {
        println!("{}", input.display());
        configuration::configuration(&fs::read(&input).unwrap());
    }
}
