//! The configuration file, as the command line finds it.

use crate::config::{Origin, Settings};
use crate::settings::{SETTINGS, setting};

/// Any text is a configuration or is refused as wrong usage; what is taken has a value for each name, and came from where it says.
pub fn configuration(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("immich-backup.toml");
    std::fs::write(&file, data).expect("a file");
    let arguments = ["immich-backup", "backup", "--config", file.to_str().expect("a path")];
    let matches = crate::cli::command().get_matches_from(arguments);
    let matches = matches.subcommand().expect("a command").1;
    let Ok(settings) = Settings::resolve(matches, &|_| None) else { return };
    for one in SETTINGS {
        let Some(found) = settings.found(one.name) else { continue };
        assert_eq!(setting(one.name).map(|setting| setting.name), Some(one.name));
        match &found.origin {
            Origin::File(path) => assert!(*path == file && !one.environment.is_empty(), "{} is meant for one run", one.name),
            Origin::Flag => assert_eq!(one.name, "config"),
            Origin::Default => assert_eq!(found.values, [one.default.expect("a default")]),
            Origin::Environment(name) => panic!("nothing was in the environment, and {name} was found there"),
        }
        // Whatever stands there is a value of its kind, or is refused in words that name it.
        for error in [settings.switch(one.name).err(), settings.time(one.name).err(), settings.parsed::<u64>(one.name).err()].into_iter().flatten() {
            assert!(error.0.contains(one.name), "{error}");
        }
    }
}
