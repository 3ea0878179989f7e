//! What fuzzers found worth keeping, and seeds for them: each input goes through the function that the fuzzer calls (`fuzz/`).
//!
//! `IMMICH_BACKUP_WRITE_SEEDS=1 scripts/test corpus` writes the seeds anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a test may")]

#[path = "../../fuzz/src/entries.rs"]
mod entries;

use entries::{repository, start, target};
use immich_backup_core::repository::log::{Entry, Fact};
use immich_backup_core::repository::manifest::Manifest;
use std::collections::BTreeSet;
use std::fs;

const HEADER: &str = r#"{"format":1,"sequence":1,"previous_sha256":"ac759b7a28aff637a9000086da226ba4e50cd1423ab3e93539179f7b6f90cc2b","run":"986376a7-d50d-4af4-959e-20c07d69326e","written_at":"2026-11-22T00:00:22.883600293Z","writer":"9ad34f9a-eea3-4a68-a233-60a2de6378ba"}"#;

/// One fact of each kind, as docs/format.md has them; but for `epoch`, which has an entry of its own.
const FACTS: [&str; 22] = [
    r#"{"fact":"run_started","at":"2026-11-22T00:00:22Z","host":"vm","roots":[{"path":"/srv/immich"},{"external":"nas","path":"/nas","server_path":"/mnt/nas"}]}"#,
    r#"{"fact":"run_started","at":"2026-11-22T00:00:22Z","host":"vm","roots":[],"shard":{"of":2,"part":1},"accepts":"986376a7-d50d-4af4-959e-20c07d69326e"}"#,
    r#"{"fact":"stored","path":"upload/a.jpg","sha256":"730905b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","sha1":"2482131b7d9621412f7999e659a53aca4f855354","size":39108,"mtime_ns":1795305665517777926,"ctime_ns":1795305665517777926,"mode":420}"#,
    r#"{"fact":"stored","path":"a%0Ab","external":"nas","sha256":"730905b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","sha1":"2482131b7d9621412f7999e659a53aca4f855354","size":39108,"mtime_ns":-1,"mode":420,"key":"library/upload/a.jpg"}"#,
    r#"{"fact":"stored","path":".env","root":"config","sha256":"030905b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","sha1":"0482131b7d9621412f7999e659a53aca4f855354","size":3,"mtime_ns":1,"mode":384}"#,
    r#"{"fact":"doubtful","path":"upload/b.jpg","sha256":"130905b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","sha1":"1482131b7d9621412f7999e659a53aca4f855354","size":1,"mtime_ns":1,"mode":420,"key":"versions/upload/b.jpg/130905b9134bde5f"}"#,
    r#"{"fact":"archived","path":"a%0Ab","external":"nas"}"#,
    r#"{"fact":"snapshot","started_at":"2026-11-22T00:01:08Z","taken_at":"2026-11-22T00:01:09Z","label":"evening","immich_version":"v3.1.0","totals":{"original":{"files":2,"bytes":39111},"derived":{"files":0,"bytes":0},"marker":{"files":0,"bytes":0}},"sent":{"files":2,"bytes":526},"archived":1,"unread_count":1,"unread":[{"path":"upload/link","problem":"x"}],"originals_only":false,"dump":"database/2026-11-22T06-47-27Z-immich-v3.1.0.sql.gz"}"#,
    r#"{"fact":"run_ended","outcome":"withheld","reason":"49 of 156 originals are gone","gone":49,"changed":0}"#,
    r#"{"fact":"claimed","shard":{"of":8,"part":3},"path":"upload/copy.jpg","content":"730905b9134bde5f"}"#,
    r#"{"fact":"left","path":"upload/a.jpg"}"#,
    r#"{"fact":"shard_done","shard":{"of":8,"part":3},"counts":{"seen":{"files":120,"bytes":2400000},"sent":{"files":2,"bytes":526}},"seen_of_immich":120}"#,
    r#"{"fact":"dump","key":"database/2026-11-22T06-47-27Z-immich-v3.1.0.sql.gz","sha256":"5b0c05b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","size":63356,"plain_size":335210,"taken_at":"2026-11-22T06:47:27.1Z","immich_version":"3.1.0","server_version":"18.4","program_version":"18.4","rows":754}"#,
    r#"{"fact":"drilled","at":"2026-11-22T06:59:09Z","snapshot":"986376a7-d50d-4af4-959e-20c07d69326e","outcome":"passed","tables":66,"rows":754,"assets":93,"sampled":93}"#,
    r#"{"fact":"pruned","at":"2026-11-22T06:59:09Z","keys":["database/2026-11-22T06-47-27Z-immich-v3.1.0.sql.gz"],"rule":"keep 1"}"#,
    r#"{"fact":"manifest","key":"manifests/0000000003.db.zst","sha256":"f2855e91f8aeef587c61fc82500ffb10d0372a21f2bacc95dc0590d8a80c3bd5","sequence":3,"rows":403}"#,
    r#"{"fact":"listed","at":"2026-11-22T00:00:23.529636218Z","sequence":6,"objects":399,"damaged":0}"#,
    r#"{"fact":"read","at":"2026-11-22T00:00:23.589643287Z","sequence":7,"sample":{"of":7,"part":0},"objects":59,"bytes":1098810,"damaged":0}"#,
    r#"{"fact":"damaged","key":"library/upload/a.jpg","problem":"its bytes have another SHA-256"}"#,
    r#"{"fact":"sound","key":"library/upload/a.jpg"}"#,
    r#"{"fact":"relocated","key":"library/upload/a.jpg","to":"versions/upload/a.jpg/730905b9134bde5f","sha256":"730905b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","size":39108}"#,
    r#"{"fact":"teleported","to":[1,2]}"#,
];

const EPOCH: &str = r#"{"fact":"epoch","at":"2026-11-22T17:05:12Z","host":"vm","base_epoch":0,"reason":"log entry 1 is damaged","rejected_count":1,"rejected":[{"key":"log/0000000001.ndjson.zst","size":15,"sha256":"930905b9134bde5f077cb6ab972745af689e4e54d8388b762ea60bac4a9ed5a6","why":"no entry"}],"missing_count":2}"#;

const DUMP: &str = "\x06--\n-- PostgreSQL database dump\n--\n\n\\restrict k3y\n\n-- Dumped from database version 18.4 (Debian 18.4-1)\n-- Dumped by pg_dump version 18.4\n\nSET statement_timeout = 0;\n\nCREATE TABLE public.asset (\n    id uuid NOT NULL,\n    checksum bytea NOT NULL\n);\n\nCOPY public.asset (id, \"originalPath\", \"isExternal\", checksum, type, \"ownerId\") FROM stdin;\n\
    00000000-0000-4000-8000-000000000001\t/data/upload/a.jpg\tf\t\\\\x2482131b7d9621412f7999e659a53aca4f855354\tIMAGE\t00000000-0000-4000-8000-000000000009\n\
    00000000-0000-4000-8000-000000000002\t/mnt/external/b\\tc.jpg\tt\t\\N\tVIDEO\t\\N\n\\.\n\n\nCOPY public.asset_file (\"assetId\", type, path) FROM stdin;\n\
    00000000-0000-4000-8000-000000000001\tsidecar\t/data/upload/a.jpg.xmp\n\\.\n\n\nCOPY public.\"user\" (id, name, \"storageLabel\", \"profileImagePath\") FROM stdin;\n\
    00000000-0000-4000-8000-000000000009\tbob\tadmin\t/data/profile/x.jpg\n\\.\n\n\nCOPY public.library (id, name, \"importPaths\") FROM stdin;\n00000000-0000-4000-8000-000000000008\tNAS\t{/mnt/external}\n\\.\n\n\n\
    COPY public.system_metadata (key, value) FROM stdin;\nMediaLocation\t{\"location\": \"/data\"}\n\\.\n\n\nCREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS $_$\nBEGIN\nEND;$_$;\n\nCREATE INDEX i ON public.asset USING btree (id);\n\n\
    --\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict k3y\n\n";

const COMPOSE: &str = "name: immich\nservices:\n  immich-server:\n    image: ghcr.io/immich-app/immich-server:${IMMICH_VERSION:-release}\n    volumes:\n      - ${UPLOAD_LOCATION}:/data\n      - type: bind\n        source: /mnt/nas\n        target: /mnt/external\n    env_file: [.env]\n    environment: &env\n      DB_PASSWORD: ${DB_PASSWORD}\n      API_KEY: 'abcDEF123456'\n    depends_on: [database]\n    stop_grace_period: 1m30s\n  database:\n    image: postgres:14\n    environment:\n      <<: *env\n      POSTGRES_PASSWORD: \"s3cret-Word\"\n    command: postgres -c shared_preload_libraries=vchord.so --password=hunter2hunter2\n    volumes: [pg:/var/lib/postgresql/data]\nvolumes:\n  pg:\n    driver_opts: {type: none, o: bind, device: /srv/pg}\n";

const VARIABLES: &str = "# comment: DB_PASSWORD=old1secret\nUPLOAD_LOCATION=./library\nexport DB_PASSWORD='po$tgres one'\nDB_URL=postgresql://immich:Hunter2hunter2@database:5432/immich?sslmode=disable\nA=\"line\\nbreak ${B:-c}\" # note\nB: yaml like\nEMPTY=\nBARE\nIMMICH_VERSION=${X:?needed}\n";

/// Seeds: what the program and its surroundings write, made here.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds: Vec<(&str, String, Vec<u8>)> = Vec::new();
    let all = format!("{HEADER}\n{}\n", FACTS.join("\n"));
    for target in ["log_entry", "log_apply"] {
        seeds.push((target, "one-of-each".to_owned(), all.clone().into_bytes()));
        seeds.push((target, "header".to_owned(), format!("{HEADER}\n").into_bytes()));
        let most =
            FACTS[7].replace("39111", "18446744073709551615").replace(r#""files":0,"bytes":0"#, r#""files":18446744073709551615,"bytes":18446744073709551615"#);
        let opening = HEADER.replace(r#"{"format":1,"#, r#"{"format":1,"epoch":1,"#);
        seeds.push((target, "opens-an-epoch".to_owned(), format!("{opening}\n{EPOCH}\n{}\n", FACTS[2]).into_bytes()));
        seeds.push((target, "largest-numbers".to_owned(), format!("{HEADER}\n{most}\n").into_bytes()));
    }
    seeds.push(("log_entry", "sealed".to_owned(), entries::sealed(all.as_bytes())));
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut manifest = Manifest::create(&at("manifest.db"), repository(), &start()).unwrap();
    seeds.push(("manifest_copy", "empty.zst".to_owned(), packed(&manifest, &at("plain"), &at("packed"))));
    manifest.apply(&Entry::decode(&entries::sealed(all.as_bytes())).unwrap()).unwrap();
    seeds.push(("manifest_copy", "filled.zst".to_owned(), packed(&manifest, &at("plain"), &at("packed"))));
    // In pages of 512 bytes, so that a fuzzer meets more than empty ones.
    let plain = rusqlite::Connection::open(at("plain")).unwrap();
    plain.execute_batch("PRAGMA page_size = 512; VACUUM").unwrap();
    drop(plain);
    seeds.push(("manifest_copy", "plain".to_owned(), fs::read(at("plain")).unwrap()));
    for target in ["dump", "inventory"] {
        seeds.push((target, "small".to_owned(), DUMP.as_bytes().to_vec()));
    }
    for (name, paths) in
        [("plain", "upload/a.jpg\0upload/b/c.jpg\0a"), ("odd", "100%.jpg\0a\nb\0back\\slash\0end.\0%hashed/x\0%external/nas/a\0external/nas/a\0%FF\0..\0a//b")]
    {
        seeds.push(("keys", name.to_owned(), paths.as_bytes().to_vec()));
    }
    seeds.push(("keys", "bytes".to_owned(), b"\xFFx\0\xC2\x80\0\xEF\xBF\xBE/\xED\xA0\x80".to_vec()));
    for (name, place) in [
        ("s3", "s3://bucket/a%20b/c?endpoint=https://host:9000&region=eu&style=path&checksum=off"),
        ("gs", "gs://bucket/prefix?endpoint=http://127.0.0.1:1"),
        ("az", "az://container/prefix?account=name"),
        ("directory", "file:///srv//backup/"),
        ("postgresql", "postgresql://immich:hunter2hunter2@h1:5432,[::1]:5433/immich?sslmode=require&host=%2Frun"),
        ("retention", "30d"),
        ("selector", "2026-11-22T06:59:09Z"),
        ("pattern", "**/*.{jpg,tmp}"),
    ] {
        seeds.push(("places", name.to_owned(), place.as_bytes().to_vec()));
    }
    seeds.push(("variables", "all".to_owned(), VARIABLES.as_bytes().to_vec()));
    seeds.push(("compose", "immich".to_owned(), COMPOSE.as_bytes().to_vec()));
    seeds
}

fn packed(manifest: &Manifest, plain: &std::path::Path, packed: &std::path::Path) -> Vec<u8> {
    manifest.pack(plain, packed).unwrap();
    fs::read(packed).unwrap()
}

#[test]
fn the_seeds_of_every_target_are_kept_and_taken() {
    let write = std::env::var_os("IMMICH_BACKUP_WRITE_SEEDS").is_some();
    for (name, seed, bytes) in seeds() {
        target(name).unwrap()(&bytes);
        let path = entries::corpus().join(name).join(format!("seed-{seed}"));
        if write {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        // What is compressed or a database may come in other bytes from other versions of the libraries.
        let kept = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let is_as_good = || match name {
            "manifest_copy" => entries::is_manifest(&kept),
            "log_entry" => Entry::decode(&kept).is_ok(),
            _ => false,
        };
        assert!(kept == bytes || is_as_good(), "{} is not what is written today", path.display());
    }
}

#[test]
fn the_seeds_have_a_fact_of_each_kind() {
    // A kind that is new does not build here, and gets a fact above.
    let kind = |fact: &Fact| match fact {
        Fact::RunStarted(_) => 0,
        Fact::Stored(_) => 1,
        Fact::Archived(_) => 2,
        Fact::Snapshot(_) => 3,
        Fact::RunEnded(_) => 4,
        Fact::Manifest(_) => 5,
        Fact::Dump(_) => 6,
        Fact::Doubtful(_) => 7,
        Fact::Drilled(_) => 8,
        Fact::Pruned(_) => 9,
        Fact::Listed(_) => 10,
        Fact::Read(_) => 11,
        Fact::Damaged(_) => 12,
        Fact::Sound(_) => 13,
        Fact::Claimed(_) => 14,
        Fact::Left(_) => 15,
        Fact::ShardDone(_) => 16,
        Fact::Epoch(_) => 17,
        Fact::Relocated(_) => 18,
        Fact::Unknown => 19,
    };
    let mut kinds = BTreeSet::new();
    for (_, name, lines) in seeds().iter().filter(|(target, _, _)| *target == "log_apply") {
        let entry = Entry::decode(&entries::sealed(lines)).unwrap_or_else(|error| panic!("{name}: {error}"));
        kinds.extend(entry.facts.iter().map(kind));
        // Each is applied, and not refused as a whole for one of them.
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::create(&folder.path().join("manifest.db"), repository(), &start()).unwrap();
        manifest.apply(&entry).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(kinds, (0..20).collect());
}

#[test]
fn every_kept_input_is_taken_as_its_target_demands() {
    let mut replayed = BTreeSet::new();
    for folder in fs::read_dir(entries::corpus()).unwrap().map(|folder| folder.unwrap().path()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if !entries::is_of_another_crate(&name) {
            let run = target(&name).unwrap_or_else(|| panic!("there is no target `{name}`"));
            let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|input| input.unwrap().path()).collect();
            inputs.sort();
            assert!(!inputs.is_empty(), "{name}");
            for input in &inputs {
                // Shown where it fails.
                println!("{}", input.display());
                run(&fs::read(input).unwrap());
            }
        }
        replayed.insert(name);
    }
    let targets = fs::read_dir(entries::corpus().join("../fuzz_targets")).unwrap();
    let targets: BTreeSet<_> = targets.map(|target| target.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(replayed, targets, "each target has a corpus");
}

/// Gives the numbers of a run that failed once more.
const SEED: &str = "IMMICH_BACKUP_TEST_SEED";

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end.max(1)
    }
}

/// What stands somewhere in most inputs, and means something there.
const WORDS: [&[u8]; 16] =
    [b"\n", b"\\.", b"%", b"..", b"/", b"\"", b"'", b"$$", b"{", b"}", b"\0", b"\xFF", b"-1", b"18446744073709551615", b"COPY public.asset", b"${A:-"];

/// `input` with a few changes: bits, bytes, words, parts taken out, doubled, or taken from `other`.
fn changed(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let (from, length) = (random.below(bytes.len()), random.below(40));
        let to = (from + length).min(bytes.len());
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[from] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[from] = u8::try_from(random.below(256)).unwrap(),
            2 => drop(bytes.splice(from..from, WORDS[random.below(WORDS.len())].iter().copied())),
            3 => drop(bytes.drain(from..to)),
            4 => {
                let part = bytes[from..to].to_vec();
                bytes.splice(to..to, part);
            }
            5 => {
                let begin = random.below(other.len());
                let part = other[begin..(begin + length).min(other.len())].to_vec();
                bytes.splice(from..to, part);
            }
            _ => bytes.truncate(random.below(bytes.len())),
        }
    }
    bytes
}

/// Changes every kept input of a target `times` times. Where one fails, the panic comes after the line that says which.
fn take_changed(times: usize) {
    let fresh = || u64::from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos());
    let seed = std::env::var(SEED).map_or_else(|_| fresh(), |text| text.parse().unwrap());
    for folder in fs::read_dir(entries::corpus()).unwrap().map(|folder| folder.unwrap().path()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(run) = target(&name) else { continue };
        let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|input| input.unwrap().path()).collect();
        inputs.sort();
        let inputs: Vec<_> = inputs.iter().map(|path| fs::read(path).unwrap()).collect();
        let mut random = Random(seed | 1 << 40);
        for number in 0..times {
            let (input, other) = (&inputs[random.below(inputs.len())], &inputs[random.below(inputs.len())]);
            let bytes = changed(input, other, &mut random);
            if std::panic::catch_unwind(|| run(&bytes)).is_err() {
                let kept = std::env::temp_dir().join(format!("{name}-{}", immich_backup_core::model::Sha256::of(&bytes)));
                fs::write(&kept, &bytes).unwrap();
                panic!("{name}, {SEED}={seed}, input {number}: kept as {}", kept.display());
            }
        }
        println!("{name}: {times} inputs");
    }
}

#[test]
fn every_target_takes_kept_inputs_that_were_changed_at_random() {
    take_changed(100);
}

#[test]
#[ignore = "slow: many inputs"]
fn every_target_takes_twenty_thousand_inputs_that_were_changed_at_random() {
    take_changed(20_000);
}
