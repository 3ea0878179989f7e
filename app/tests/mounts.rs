//! A media location whose folders lie on several disks, as Immich documents it: what real Immich servers wrote, taken apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
mod support;

use immich::{installed, numbers, proof};
use std::fs;

#[test]
fn a_media_location_on_several_disks_is_proven_and_comes_back() {
    let Some((immich, _server)) = installed() else { return };
    let trees = immich.trees();
    // Docker mounts these over the host's folders of those names, which stay behind with what they had.
    let mut mounts = Vec::new();
    for folder in ["thumbs", "profile", "upload"] {
        let (inside, outside) = (immich.world.library.join(folder), immich.world.at(&format!("disk-{folder}")));
        fs::rename(&inside, &outside).unwrap();
        mounts.extend(["--media-mount".to_owned(), format!("{folder}={}", outside.display())]);
    }
    fs::create_dir(immich.world.library.join("upload")).unwrap();
    fs::write(immich.world.library.join("upload/stale.jpg"), "of the time before the disks").unwrap();
    let mounted: Vec<_> = mounts.iter().map(String::as_str).collect();

    let first = immich.backup(&mounted).ended(0);
    assert_eq!(numbers(&proof(&first)), immich.expected());
    let second = immich.backup(&mounted).ended(0);
    assert_eq!(numbers(&proof(&second)), immich.expected());
    assert_eq!(second.summary()["files"]["sent"], 0, "{}", second.told());

    let whole = immich.place("whole");
    immich.restore(&whole, &[], &[]).ended(0);
    whole.assert_is(&trees, "restored into one folder");
    let (apart, thumbs) = (immich.place("apart"), immich.world.at("restored-thumbs"));
    immich.restore(&apart, &[], &["--media-mount", &format!("thumbs={}", thumbs.display())]).ended(0);
    assert!(!apart.media.join("thumbs").exists());
    fs::rename(&thumbs, apart.media.join("thumbs")).unwrap();
    apart.assert_is(&trees, "restored with thumbs elsewhere");

    // Without its disk, `upload` is the host's own: nothing of it was mounted.
    let refused = immich.backup(&mounted[..4]).ended(1);
    assert!(refused.err.contains("not mounted?") || refused.out.contains("not mounted?"), "{}", refused.told());
}

#[test]
fn what_goes_with_a_stopped_immich_is_refused_without_it_unless_the_environment_says_it() {
    let Some((mut immich, _server)) = installed() else { return };
    for flag in [["--stage", "/mnt/ssd"], ["--postgres-dir", "/srv/postgres"]] {
        let refused = immich.backup(&flag).ended(2);
        assert!(refused.told().contains("goes with --stop-services"), "{}", refused.told());
    }
    for (name, value) in [("LOCAL_BACKUP_DIR", "/mnt/ssd"), ("DB_DATA_LOCATION", "./postgres")] {
        immich.world.environment.push((name.to_owned(), value.to_owned()));
    }
    immich.backup(&[]).ended(0);
}
