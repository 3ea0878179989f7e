//! The one table of settings: `--help`, environment, configuration file, `--show-config` and docs/configuration.md are made from it.

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: it is on or off.
    Switch,
    /// One value, called so in the help.
    Value(&'static str),
    /// Any number of values, called so in the help; in the environment separated by commas.
    Values(&'static str),
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// `--name`, and the key in the configuration file.
    pub name: &'static str,
    /// `-x`.
    pub short: Option<char>,
    /// What it takes.
    pub takes: Takes,
    /// Names in the environment, the first that is set wins.
    pub environment: &'static [&'static str],
    /// What holds where nothing is said.
    pub default: Option<&'static str>,
    /// One sentence.
    pub help: &'static str,
}

/// All settings.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "repository",
        short: Some('r'),
        takes: Takes::Value("URL"),
        environment: &["IMMICH_BACKUP_REPOSITORY"],
        default: None,
        help: "Where the backup is kept: a directory (a path, or file:///path), s3://bucket/prefix, gs://bucket/prefix or az://container/prefix; docs/stores.md has the options behind a `?`",
    },
    Setting {
        name: "library",
        short: None,
        takes: Takes::Value("DIR"),
        environment: &["IMMICH_BACKUP_LIBRARY", "LIBRARY_DIR", "UPLOAD_LOCATION"],
        default: None,
        help: "Immich's media location: the folder that holds upload, library, thumbs, …",
    },
    Setting {
        name: "external",
        short: None,
        takes: Takes::Values("NAME=DIR"),
        environment: &["IMMICH_BACKUP_EXTERNAL"],
        default: None,
        help: "An external library and the name to keep it under; for restore, where it goes",
    },
    Setting {
        name: "drop-external",
        short: None,
        takes: Takes::Values("NAME"),
        environment: &[],
        default: None,
        help: "This external library is gone for good: archive its files",
    },
    Setting {
        name: "state-dir",
        short: None,
        takes: Takes::Value("DIR"),
        environment: &["IMMICH_BACKUP_STATE_DIR"],
        default: None,
        help: "Folder for the local manifest and what was seen (default: /var/lib/immich-backup for root, else $XDG_STATE_HOME/immich-backup); losing it costs time, never data",
    },
    Setting {
        name: "config",
        short: None,
        takes: Takes::Value("FILE"),
        environment: &["IMMICH_BACKUP_CONFIG"],
        default: None,
        help: "Configuration file (default: the first of ./immich-backup.toml, $XDG_CONFIG_HOME/immich-backup.toml, /etc/immich-backup.toml)",
    },
    Setting {
        name: "workers",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_WORKERS", "UPLOAD_WORKERS"],
        default: Some("4"),
        help: "Files that are sent, read back or written at once (1 to 256)",
    },
    Setting {
        name: "init",
        short: None,
        takes: Takes::Switch,
        environment: &["IMMICH_BACKUP_INIT"],
        default: None,
        help: "Make the repository first, if the place is empty",
    },
    Setting {
        name: "originals-only",
        short: None,
        takes: Takes::Switch,
        environment: &["IMMICH_BACKUP_ORIGINALS_ONLY"],
        default: None,
        help: "Leave out thumbnails and transcoded videos: Immich can make them again",
    },
    Setting {
        name: "exclude",
        short: None,
        takes: Takes::Values("GLOB"),
        environment: &["IMMICH_BACKUP_EXCLUDE"],
        default: None,
        help: "Leave out what this matches (`upload/tmp`, `**/*.tmp`; `*` stops at `/`, `**` does not)",
    },
    Setting {
        name: "include",
        short: None,
        takes: Takes::Values("GLOB"),
        environment: &["IMMICH_BACKUP_INCLUDE"],
        default: None,
        help: "But take what this matches, though it is left out otherwise",
    },
    Setting {
        name: "storage-class",
        short: None,
        takes: Takes::Value("CLASS"),
        environment: &["IMMICH_BACKUP_STORAGE_CLASS"],
        default: None,
        help: "Storage class for originals, one that can be read at once (`GLACIER_IR`, `ARCHIVE`, `Cold`, …); all else stays in the store's standard class",
    },
    Setting {
        name: "estimate",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Make nothing; measure the library and show what the first year may cost",
    },
    Setting {
        name: "retries",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_RETRIES"],
        default: Some("5"),
        help: "How often a request to an object store is tried again",
    },
    Setting {
        name: "retry-wait",
        short: None,
        takes: Takes::Value("TIME"),
        environment: &["IMMICH_BACKUP_RETRY_WAIT"],
        default: Some("2s"),
        help: "The wait before the first retry; it doubles each time, a quarter more or less by chance",
    },
    Setting {
        name: "idle-timeout",
        short: None,
        takes: Takes::Value("TIME"),
        environment: &["IMMICH_BACKUP_IDLE_TIMEOUT"],
        default: Some("60s"),
        help: "Give a request to an object store up when nothing has moved for so long",
    },
    Setting {
        name: "rehash",
        short: None,
        takes: Takes::Value("SAMPLE"),
        environment: &["IMMICH_BACKUP_REHASH"],
        default: None,
        help: "Read this many unchanged files again to find damage at the source (`200`, `5%` or `1/7`; each run takes the next part)",
    },
    Setting { name: "dry-run", short: Some('n'), takes: Takes::Switch, environment: &[], default: None, help: "Show what would be done, and do nothing" },
    Setting {
        name: "accept",
        short: None,
        takes: Takes::Value("RUN"),
        environment: &[],
        default: None,
        help: "What made this run withhold its snapshot was meant; once",
    },
    Setting {
        name: "ignore-missing-markers",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Go on though a folder's .immich marker has gone since the last backup",
    },
    Setting {
        name: "label",
        short: None,
        takes: Takes::Value("TEXT"),
        environment: &["IMMICH_BACKUP_LABEL", "BACKUP_DATE"],
        default: None,
        help: "A name for the snapshot",
    },
    Setting {
        name: "immich-version",
        short: None,
        takes: Takes::Value("VERSION"),
        environment: &["IMMICH_BACKUP_IMMICH_VERSION", "IMMICH_VERSION"],
        default: None,
        help: "Immich's version, to be noted in the snapshot",
    },
    Setting {
        name: "wait",
        short: None,
        takes: Takes::Value("TIME"),
        environment: &["IMMICH_BACKUP_WAIT"],
        default: Some("15m"),
        help: "How long to wait for another run that has the repository",
    },
    Setting {
        name: "take-over",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Do not wait for another machine's unfinished run: it is known to be dead",
    },
    Setting {
        name: "snapshot",
        short: None,
        takes: Takes::Value("ID|latest|TIME"),
        environment: &[],
        default: Some("latest"),
        help: "Which snapshot: the beginning of its id, `latest`, or a time (the newest taken by then)",
    },
    Setting {
        name: "archived",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Show what is no longer in the library, and what it held last",
    },
    Setting {
        name: "summary",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Show counts and sizes for each folder, and the total",
    },
    Setting {
        name: "until",
        short: None,
        takes: Takes::Value("N"),
        environment: &[],
        default: None,
        help: "Read the log up to entry N only: for a log that is damaged after it",
    },
    Setting {
        name: "listing",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Check the log, and that every object is there with its size (what verify does by default)",
    },
    Setting { name: "read-data", short: None, takes: Takes::Switch, environment: &[], default: None, help: "Also read every byte back" },
    Setting {
        name: "sample",
        short: None,
        takes: Takes::Value("SAMPLE"),
        environment: &["IMMICH_BACKUP_SAMPLE"],
        default: None,
        help: "With --read-data: only so many (`200`, `5%` or `1/7`; each run takes the next part, so that all are read in time)",
    },
    Setting {
        name: "to",
        short: None,
        takes: Takes::Value("DIR"),
        environment: &[],
        default: None,
        help: "Where the media location goes; made if it is missing",
    },
    Setting {
        name: "path",
        short: None,
        takes: Takes::Values("GLOB"),
        environment: &[],
        default: None,
        help: "Only what this matches (`library/anna`, `upload/**/*.heic`)",
    },
    Setting { name: "overwrite", short: None, takes: Takes::Switch, environment: &[], default: None, help: "Replace files that differ from the snapshot" },
    Setting {
        name: "max-age",
        short: None,
        takes: Takes::Value("TIME"),
        environment: &["IMMICH_BACKUP_MAX_AGE"],
        default: None,
        help: "Fail (exit 1) if the newest snapshot is older than this, e.g. `26h`",
    },
    Setting {
        name: "json",
        short: None,
        takes: Takes::Switch,
        environment: &["IMMICH_BACKUP_JSON"],
        default: None,
        help: "Print one JSON object a line: events, and at last the summary",
    },
    Setting {
        name: "quiet",
        short: Some('q'),
        takes: Takes::Switch,
        environment: &["IMMICH_BACKUP_QUIET"],
        default: None,
        help: "Show only the result, and what is wrong",
    },
    Setting { name: "verbose", short: Some('v'), takes: Takes::Switch, environment: &["IMMICH_BACKUP_VERBOSE"], default: None, help: "Name every file" },
    Setting {
        name: "show-config",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Show each setting, its value and where that came from, and do nothing else",
    },
    Setting {
        name: "keep-last",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_KEEP_LAST"],
        default: None,
        help: "Keep the newest N dumps of the database; a dump stays if any --keep rule keeps it",
    },
    Setting {
        name: "keep-within",
        short: None,
        takes: Takes::Value("TIME"),
        environment: &["IMMICH_BACKUP_KEEP_WITHIN"],
        default: None,
        help: "Keep all dumps that are not older than this before the newest, e.g. `30d`",
    },
    Setting {
        name: "keep-daily",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_KEEP_DAILY"],
        default: None,
        help: "Keep the newest dump of each of the last N days that have one",
    },
    Setting {
        name: "keep-weekly",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_KEEP_WEEKLY"],
        default: None,
        help: "Keep the newest dump of each of the last N ISO weeks that have one",
    },
    Setting {
        name: "keep-monthly",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_KEEP_MONTHLY"],
        default: None,
        help: "Keep the newest dump of each of the last N months that have one",
    },
    Setting {
        name: "keep-yearly",
        short: None,
        takes: Takes::Value("N"),
        environment: &["IMMICH_BACKUP_KEEP_YEARLY"],
        default: None,
        help: "Keep the newest dump of each of the last N years that have one",
    },
    Setting {
        name: "database-keep",
        short: None,
        takes: Takes::Value("N|TIME"),
        environment: &["IMMICH_BACKUP_DATABASE_KEEP", "DB_BACKUP_RETENTION"],
        default: None,
        help: "Which dumps stay when a backup ends, where its credentials may delete, and in `prune` where no --keep rule is given: the newest N, or all of the last e.g. `30d` (default: all)",
    },
    Setting {
        name: "derived",
        short: None,
        takes: Takes::Switch,
        environment: &[],
        default: None,
        help: "Also remove archived thumbnails and transcoded videos from old snapshots, where nothing that stands has the same content",
    },
];

/// Settings that every command takes.
pub const EVERYWHERE: &[&str] = &["repository", "state-dir", "config", "retries", "retry-wait", "idle-timeout", "json", "quiet", "verbose", "show-config"];

/// One command.
#[derive(Debug)]
pub struct CommandSpec {
    /// Its name.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// More, shown by `--help`.
    pub more: &'static str,
    /// The settings it takes besides [`EVERYWHERE`].
    pub settings: &'static [&'static str],
    /// A positional argument: name and help.
    pub argument: Option<(&'static str, &'static str)>,
}

/// All commands.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "init",
        about: "Make a repository in an empty place",
        more: "Prints what the program needs to be allowed to do there. With --dry-run or --estimate it makes nothing, asks nobody and needs no credentials.",
        settings: &["dry-run", "estimate", "library", "external", "originals-only", "exclude", "include", "storage-class"],
        argument: None,
    },
    CommandSpec {
        name: "backup",
        about: "Store what is new, and commit a snapshot",
        more: "Reads the library and changes nothing in it. Files that did not change are not read; content that the repository has is not sent again; \
               what is gone from the library is marked as archived and stays in the repository. A run may be stopped at any time: the next one goes on from there.",
        settings: &[
            "library",
            "external",
            "drop-external",
            "init",
            "originals-only",
            "exclude",
            "include",
            "storage-class",
            "rehash",
            "dry-run",
            "accept",
            "ignore-missing-markers",
            "label",
            "immich-version",
            "workers",
            "wait",
            "take-over",
        ],
        argument: None,
    },
    CommandSpec { name: "snapshots", about: "Show all snapshots", more: "", settings: &["until"], argument: None },
    CommandSpec {
        name: "ls",
        about: "Show the files of a snapshot",
        more: "",
        settings: &["snapshot", "archived", "summary", "until"],
        argument: Some(("PATH", "Only this file, folder or glob")),
    },
    CommandSpec {
        name: "status",
        about: "Say whether the backup is recent and sound",
        more: "Shows the age of the newest snapshot, of the last look at every object, and of the last reading. For cron and probes: --max-age.",
        settings: &["max-age"],
        argument: None,
    },
    CommandSpec {
        name: "verify",
        about: "Check that everything the log promises is there, and whole",
        more: "Reads the whole log and lists the store; with --read-data it reads objects back and compares every byte. Writes what it found to the log: \
               the next backup stores damaged content again from the library.",
        settings: &["listing", "read-data", "sample", "until", "workers"],
        argument: None,
    },
    CommandSpec {
        name: "restore",
        about: "Bring a snapshot back",
        more: "Shows the plan, then does it. Every byte is verified while it is written; files that are right already are skipped, so that a restore that was \
               stopped goes on where it was; a file that differs is never replaced unless --overwrite is said.",
        settings: &["to", "snapshot", "path", "external", "overwrite", "dry-run", "until", "workers"],
        argument: None,
    },
    CommandSpec { name: "doctor", about: "Check every requirement, and say what to do", more: "", settings: &["library", "external"], argument: None },
    CommandSpec {
        name: "prune",
        about: "Remove dumps and copies of the manifest that are not needed any more",
        more: "Shows the plan, then does it. Originals are never removed. A dump stays if any rule keeps it; without a rule all stay. Whatever the rules say, these \
               stay: the newest dump whose files are all proven, that of the newest snapshot, those of snapshots with a label (other than a mere date), and those newer \
               than the newest snapshot. Needs credentials that may delete, which `backup` should not have.",
        settings: &["keep-last", "keep-within", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly", "database-keep", "derived", "dry-run", "wait"],
        argument: None,
    },
];

/// The setting called `name`.
#[must_use]
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}
