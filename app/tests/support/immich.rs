//! Immich installations for the end-to-end tests: a database in a real PostgreSQL, the files that belong to it, and what should be said of both.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use super::support::{Ran, Running, Tree, World, remove};
use immich_backup_core::verdict::{NamedVerdict, Presence, Proof, Thing, Verdict};
use immich_backup_testbed::fixture::{Asset, Files, Fixture, IMMICH_1, IMMICH_3};
use immich_backup_testbed::postgres::{Dump, Postgres};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Under which name the external library is backed up.
pub const NAS: &str = "nas";

/// An installation, and the program that backs it up.
pub struct Immich {
    pub fixture: Fixture,
    pub files: Files,
    pub world: World,
    /// Arguments that name the database.
    pub database: Vec<String>,
}

/// The server's database as the command line names it; the password goes by the environment.
pub fn address(server: &Postgres, database: &str) -> String {
    format!("postgresql://{}@127.0.0.1:{}/{database}", Postgres::USER, server.port())
}

/// Arguments that name a database of this server.
pub fn arguments(server: &Postgres, database: &str) -> Vec<String> {
    ["--database", &address(server, database), "--postgres-programs", server.programs().to_str().unwrap()].map(str::to_owned).to_vec()
}

/// Arguments as commands take them.
pub fn all<'a>(parts: &[&'a [String]], more: &[&'a str]) -> Vec<&'a str> {
    parts.iter().flat_map(|part| part.iter().map(String::as_str)).chain(more.iter().copied()).collect()
}

impl Immich {
    /// One whose rows are in the database `immich` of `server`.
    pub fn new(fixture: Fixture, server: &Postgres) -> Self {
        Self::named(fixture, server, "immich")
    }

    /// One whose rows are in the database `database` of `server`.
    pub fn named(fixture: Fixture, server: &Postgres, database: &str) -> Self {
        server.create_loaded(database, fixture.dump());
        Self::at(fixture, arguments(server, database))
    }

    /// One whose database is there already.
    pub fn at(fixture: Fixture, database: Vec<String>) -> Self {
        let files = fixture.copy();
        let mut world = World::bare();
        remove(&world.library);
        world.library = files.media();
        world.environment.push(("DB_PASSWORD".to_owned(), Postgres::PASSWORD.to_owned()));
        Self { fixture, files, world, database }
    }

    /// With its repository elsewhere.
    pub fn lent(mut self, lend: impl FnOnce(World) -> World) -> Self {
        let (world, environment) = (std::mem::replace(&mut self.world, World::bare()), self.world.environment.clone());
        self.world = lend(world);
        self.world.environment.push(("DB_PASSWORD".to_owned(), Postgres::PASSWORD.to_owned()));
        drop(environment);
        self
    }

    /// `--external nas=DIR:/mnt/external`.
    pub fn external(&self) -> Vec<String> {
        vec!["--external".to_owned(), format!("{NAS}={}:/mnt/external", self.files.external().display())]
    }

    /// `backup --init --json` with files, external library and database.
    #[track_caller]
    pub fn backup(&self, more: &[&str]) -> Ran {
        Running::start(self.backup_command(more)).wait()
    }

    pub fn backup_command(&self, more: &[&str]) -> Command {
        self.world.backup_command(&all(&[&self.external(), &self.database], more))
    }

    /// A backup of the media location alone, with the database.
    #[track_caller]
    pub fn backup_without_external(&self, more: &[&str]) -> Ran {
        self.world.backup(&all(&[&self.database], more))
    }

    /// Restores files, external library and, where `database` says so, the database. Both folders must not be there.
    #[track_caller]
    pub fn restore(&self, to: &Restored, database: &[String], more: &[&str]) -> Ran {
        let external = vec!["--external".to_owned(), format!("{NAS}={}", to.external.display())];
        self.world.restore(&to.media, &all(&[&external, database], more))
    }

    /// Places to restore to.
    pub fn place(&self, name: &str) -> Restored {
        Restored { media: self.world.at(&format!("{name}-media")), external: self.world.at(&format!("{name}-external")) }
    }

    /// The proof of a backup of all of it, as expected.json has it.
    pub fn expected(&self) -> Proof {
        let expected = &self.fixture.expected;
        let (external, inside): (Vec<_>, Vec<_>) = expected.assets.iter().partition(|asset| asset.is_external);
        assert!(inside.iter().all(|asset| asset.content_matches_checksum) && external.iter().all(|asset| !asset.content_matches_checksum));
        let sidecars = expected.assets.iter().map(|asset| sidecars(asset).len()).sum::<usize>();
        let profiles = expected.users.iter().filter(|user| !user.profile_image_path.is_empty()).count();
        let faces = expected.people.iter().filter(|person| !person.thumbnail_path.is_empty()).count();
        let videos = expected.assets.iter().filter(|asset| asset.encoded_video_path.as_ref().is_some_and(|path| !path.is_empty())).count();
        let derived = expected.assets.iter().flat_map(|asset| &asset.files).filter(|file| file.r#type != "sidecar").count() + faces + videos;
        Proof {
            assets: expected.counts.assets,
            proven: inside.len() as u64,
            unprovable: expected.counts.external,
            untracked: expected.untracked_files.len() as u64,
            companions: Presence { present: (sidecars + profiles) as u64, missing: 0 },
            derived: Presence { present: derived as u64, missing: 0 },
            ..Proof::default()
        }
    }

    /// An asset of the media location that has nothing beside it but what every picture has, and that no other asset belongs to.
    pub fn plain_asset(&self, number: usize) -> &Asset {
        let live: Vec<_> = self.fixture.expected.assets.iter().filter_map(|asset| asset.live_photo_video_id.as_deref()).collect();
        let plain = |asset: &&Asset| {
            !asset.is_external
                && !asset.is_trashed
                && asset.r#type == "IMAGE"
                && asset.live_photo_video_id.is_none()
                && !live.contains(&asset.id.as_str())
                && asset.files.len() == 2
                && asset.sidecar_path.is_none()
                && asset.size > 1_000
        };
        self.fixture.expected.assets.iter().filter(plain).nth(number).unwrap()
    }

    /// Where an asset's original lies.
    pub fn original(&self, asset: &Asset) -> PathBuf {
        self.files.find(&asset.original_path).unwrap()
    }

    /// What reports call it: a percent sign stands for itself only so.
    pub fn shown(&self, server_path: &str) -> String {
        self.path(server_path).replace('%', "%25")
    }

    /// Its path below the media location, or `external/nas/…`.
    pub fn path(&self, server_path: &str) -> String {
        if let Some(rest) = server_path.strip_prefix("/mnt/external/") {
            return format!("external/{NAS}/{rest}");
        }
        let prefix = if self.fixture.expected.version == version_of(IMMICH_1) { "upload/" } else { "/data/" };
        server_path.strip_prefix(prefix).unwrap().to_owned()
    }

    /// The table of assets.
    pub fn table(&self) -> &'static str {
        if self.fixture.expected.version == version_of(IMMICH_1) { "assets" } else { "asset" }
    }

    /// The media location and the external library, as they are now.
    pub fn trees(&self) -> (Tree, Tree) {
        (self.world.tree(), Tree::of(&self.files.external()))
    }

    /// Objects of dumps in a repository that is a folder.
    pub fn dumps(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.world.repository.join("database")) else { return Vec::new() };
        let mut dumps: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        dumps.sort();
        dumps
    }

    /// All that the log says, unpacked.
    pub fn log(&self) -> String {
        (1..=self.world.entries()).map(|sequence| String::from_utf8_lossy(&unpacked_entry(&self.world.entry(sequence))).into_owned()).collect()
    }
}

/// Where a restore writes.
pub struct Restored {
    pub media: PathBuf,
    pub external: PathBuf,
}

impl Restored {
    /// Both trees are what they were.
    #[track_caller]
    pub fn assert_is(&self, trees: &(Tree, Tree), what: &str) {
        Tree::of(&self.media).without("backups").assert_is(&trees.0, what);
        Tree::of(&self.external).assert_is(&trees.1, what);
    }
}

fn version_of(fixture: &str) -> &str {
    fixture.trim_start_matches("immich-")
}

/// Server paths of an asset's sidecars.
pub fn sidecars(asset: &Asset) -> Vec<&str> {
    let rows = asset.files.iter().filter(|file| file.r#type == "sidecar").map(|file| file.path.as_str());
    asset.sidecar_path.as_deref().filter(|path| !path.is_empty()).into_iter().chain(rows).collect()
}

/// The proof in a summary.
#[track_caller]
pub fn proof(ran: &Ran) -> Proof {
    serde_json::from_value(ran.summary()["proof"].clone()).unwrap_or_else(|error| panic!("{error}\n{}", ran.told()))
}

/// A proof as numbers: what is named, and since when all is known, is looked at by itself.
pub fn numbers(proof: &Proof) -> Proof {
    Proof { ages: immich_backup_core::verdict::Ages::default(), named: Vec::new(), ..proof.clone() }
}

/// Paths that a proof names with this verdict.
pub fn named(proof: &Proof, verdict: Verdict) -> Vec<&str> {
    proof.named.iter().filter(|named| named.verdict == verdict).map(|named| named.path.as_str()).collect()
}

/// Asserts that a proof names nothing but this.
#[track_caller]
pub fn assert_names_only(proof: &Proof, verdict: Verdict, thing: Option<Thing>, path: &str, asset: Option<&str>, kept: bool) {
    let expected = NamedVerdict { verdict, thing, path: path.to_owned(), asset: asset.map(|id| id.parse().unwrap()), kept };
    assert_eq!(proof.named, [expected]);
}

/// Each asset that `find` shows, by id.
#[track_caller]
pub fn found(ran: &Ran) -> BTreeMap<String, Value> {
    ran.events("asset").into_iter().map(|asset| (asset["id"].as_str().unwrap().to_owned(), asset)).collect()
}

/// Changes one byte in the middle of a file; its size stays, its time does not.
pub fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

/// What `program` makes of `input`.
#[track_caller]
pub fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Dropped at its end, which closes the pipe.
    let feeder = std::thread::spawn(move || stdin.write_all(&input).ok());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    piped("gzip", &["-c"], bytes)
}

/// The text of a stored dump.
#[track_caller]
pub fn text_of(path: &Path) -> Vec<u8> {
    Dump::File(path).text().unwrap()
}

/// The lines of a log entry. Its seal is a frame that `zstd` passes over.
pub fn unpacked_entry(path: &Path) -> Vec<u8> {
    piped("zstd", &["-dcq"], &fs::read(path).unwrap())
}

/// The facts of one kind in the whole log, oldest first.
pub fn facts(immich: &Immich, kind: &str) -> Vec<Value> {
    let log = immich.log();
    let facts = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    facts.filter(|fact| fact["fact"] == kind).collect()
}

/// A folder with programs of PostgreSQL that are scripts, by name. `REAL` in them is the folder of the real ones; whoever asks for the version is told the real one.
pub fn programs(world: &World, server: &Postgres, scripts: &[(&str, &str)]) -> PathBuf {
    let folder = (0..).map(|number| world.at(&format!("programs-{number}"))).find(|folder| !folder.exists()).unwrap();
    fs::create_dir_all(&folder).unwrap();
    let real = server.programs().display().to_string();
    for name in ["pg_dump", "psql", "initdb", "postgres"] {
        let body =
            scripts.iter().find(|(program, _)| *program == name).map_or_else(|| format!("exec {real}/{name} \"$@\""), |(_, body)| body.replace("REAL", &real));
        let mut script = String::from("#!/bin/bash\n");
        writeln!(script, "for word in \"$@\"; do [ \"$word\" = --version ] && exec {real}/{name} --version; done").unwrap();
        writeln!(script, "{body}").unwrap();
        super::support::write(&folder.join(name), script.as_bytes(), 1_500_000_000, 0, 0o755);
    }
    folder
}

/// An installation of the newer generation, and its server.
pub fn installed() -> Option<(Immich, Postgres)> {
    let fixture = Fixture::open(IMMICH_3)?;
    let server = Postgres::start().unwrap();
    Some((Immich::new(fixture, &server), server))
}

/// The first error of a summary: message and hint.
#[track_caller]
pub fn error(ran: &Ran) -> (String, String) {
    let error = ran.summary()["errors"][0].clone();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    assert!(!text("message").is_empty(), "no error\n{}", ran.told());
    (text("message"), text("hint"))
}

/// Nothing of a dump is in the repository, nor left in the state folder.
#[track_caller]
pub fn assert_no_dump(immich: &Immich, what: &str) {
    assert_eq!(immich.dumps(), [] as [PathBuf; 0], "{what}");
    let mut folders = vec![immich.world.state.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.contains(".sql"), "{what}: {} was left", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}

/// The database has nothing in it.
#[track_caller]
pub fn assert_empty(server: &Postgres, database: &str, what: &str) {
    assert_eq!(server.counts(database), BTreeMap::new(), "{what}");
    let types = server.psql(database, "SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = 'public'");
    assert_eq!(types, "0", "{what}");
}

/// `restore --json` of the database alone.
#[track_caller]
pub fn restore_into(immich: &Immich, server: &Postgres, database: &str, more: &[&str]) -> Ran {
    let arguments = arguments(server, database);
    immich.world.run(&[&["restore", "--json"], all(&[&arguments], more).as_slice()].concat())
}

/// Where `what` is first.
pub fn find_in(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
