//! Every class and every edge of the proof; and the whole of it against a second one, written down as it is meant and not as it is done.

use super::*;
use crate::model::{Part, Root, RootPath};
use crate::verdict::{Age, Ages, Presence};
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// `nas:a/b` is `a/b` in the external library `nas`.
fn file(text: &str) -> FilePath {
    match text.split_once(':') {
        Some((name, path)) => FilePath { root: Root::External(name.parse().unwrap()), path: RootPath::parse(path).unwrap() },
        None => FilePath::library(RootPath::parse(text).unwrap()),
    }
}

fn sha1(content: &str) -> Sha1 {
    Sha1::of(content.as_bytes())
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A version of a path, as the manifest has it.
#[derive(Debug, Clone, PartialEq)]
struct Version {
    file: StandingFile,
    stands: bool,
}

/// What a proof is made of.
#[derive(Debug, Clone, Default)]
struct Case {
    named: Vec<Named>,
    outside: Vec<Outside>,
    versions: Vec<Version>,
    snapshots: Vec<(u64, i64)>,
    listings: Vec<(u64, i64)>,
    readings: Vec<(u64, i64, Part)>,
}

const NOW: i64 = 1_000;

impl Case {
    fn names(mut self, thing: Thing, path: &str, content: Option<&str>, offline: bool) -> Self {
        let asset = Some(id(self.named.len() as u128));
        self.named.push(Named { thing, file: file(path), asset, sha1: content.map(sha1), offline });
        self
    }

    fn asset(self, path: &str, content: &str) -> Self {
        self.names(Thing::Asset, path, Some(content), false)
    }

    fn names_outside(mut self, thing: Thing, path: &str, content: Option<&str>, offline: bool) -> Self {
        self.outside.push(Outside { thing, path: path.to_owned(), asset: Some(id(99)), sha1: content.map(sha1), offline });
        self
    }

    fn version(mut self, path: &str, content: &str, stands: bool, damaged: bool) -> Self {
        let file = StandingFile { file: file(path), sha1: sha1(content), since: 1, key: Some(format!("key of {path}")), damaged };
        self.versions.push(Version { file, stands });
        self
    }

    fn stands(self, path: &str, content: &str) -> Self {
        self.version(path, content, true, false)
    }

    fn looks(&self) -> Looks {
        let mut looks = Looks::new(self.snapshots.iter().map(|(entry, second)| (*entry, at(*second))), at(NOW));
        self.listings.iter().for_each(|(covers, second)| looks.add_listing(*covers, at(*second)));
        self.readings.iter().for_each(|(covers, second, part)| looks.add_reading(*covers, at(*second), *part));
        looks
    }

    /// Where the manifest would find it.
    fn find(&self, sha1: &Sha1) -> Whereabouts {
        let mut whole = self.versions.iter().filter(|version| version.file.sha1 == *sha1 && !version.file.damaged).peekable();
        let any = whole.peek().is_some();
        match whole.find(|version| version.stands) {
            Some(Version { file, .. }) => Whereabouts::Stands { since: file.since, key: file.object_key() },
            None if any => Whereabouts::Kept,
            None => Whereabouts::Nowhere,
        }
    }

    fn prove(&self) -> Result<Proof, OutOfOrder> {
        let mut named = self.named.clone();
        named.sort_by(|a, b| order(&a.file, &b.file));
        let mut files: Vec<_> = self.versions.iter().filter(|version| version.stands).map(|version| version.file.clone()).collect();
        files.sort_by(|a, b| order(&a.file, &b.file));
        prove(named.into_iter().map(Ok), self.outside.iter().cloned().map(Ok), files.into_iter().map(Ok), |sha1| Ok(self.find(sha1)), &self.looks())
    }

    fn proof(&self) -> Proof {
        let proof = self.prove().unwrap();
        let verdicts = [proof.proven, proof.unprovable, proof.outside, proof.offline, proof.mismatched, proof.missing];
        assert_eq!(proof.assets, verdicts.iter().sum::<u64>());
        assert_eq!(proof.ages.recorded.assets, proof.proven + proof.unprovable);
        proof
    }
}

/// What is named: verdict, thing, path, kept.
fn names(proof: &Proof) -> Vec<(Verdict, Option<Thing>, &str, bool)> {
    proof.named.iter().map(|named| (named.verdict, named.thing, named.path.as_str(), named.kept)).collect()
}

const ASSET: Option<Thing> = Some(Thing::Asset);

#[test]
fn an_asset_whose_file_has_its_sha1_is_proven() {
    let proof = Case::default().asset("upload/a", "A").stands("upload/a", "A").proof();
    assert_eq!((proof.assets, proof.proven, proof.moved, proof.untracked), (1, 1, 0, 0));
    assert_eq!(proof.named, []);
    assert!(proof.is_complete());
}

#[test]
fn an_asset_whose_content_stands_elsewhere_has_moved_and_is_proven() {
    let proof = Case::default().asset("upload/a", "A").stands("library/x/a", "A").proof();
    assert_eq!((proof.proven, proof.moved, proof.missing, proof.untracked), (1, 1, 0, 1));
    assert_eq!(names(&proof), [(Verdict::Proven, ASSET, "upload/a", false), (Verdict::Untracked, None, "library/x/a", false)]);
    assert_eq!(proof.named[0].asset, Some(id(0)));
    assert!(proof.is_complete());
    // Also where something else took its place.
    let proof = Case::default().asset("upload/a", "A").stands("upload/a", "B").stands("library/x/a", "A").proof();
    assert_eq!((proof.proven, proof.moved, proof.mismatched), (1, 1, 0));
}

#[test]
fn an_asset_whose_file_has_other_content_is_mismatched() {
    let proof = Case::default().asset("upload/a", "A").stands("upload/a", "B").proof();
    assert_eq!((proof.mismatched, proof.missing, proof.untracked), (1, 0, 0));
    assert_eq!(names(&proof), [(Verdict::Mismatched, ASSET, "upload/a", false)]);
    assert!(!proof.is_complete());
    let kept = Case::default().asset("upload/a", "A").stands("upload/a", "B").version("upload/a", "A", false, false).proof();
    assert_eq!(names(&kept), [(Verdict::Mismatched, ASSET, "upload/a", true)]);
    let lost = Case::default().asset("upload/a", "A").stands("upload/a", "B").version("upload/a", "A", false, true).proof();
    assert_eq!(names(&lost), [(Verdict::Mismatched, ASSET, "upload/a", false)]);
}

#[test]
fn an_asset_that_stands_nowhere_is_missing_and_may_be_kept() {
    let proof = Case::default().asset("upload/a", "A").proof();
    assert_eq!((proof.missing, proof.mismatched), (1, 0));
    assert_eq!(names(&proof), [(Verdict::Missing, ASSET, "upload/a", false)]);
    assert!(!proof.is_complete() && !proof.is_complete_inside());
    let kept = Case::default().asset("upload/a", "A").version("upload/b", "A", false, false).proof();
    assert_eq!(names(&kept), [(Verdict::Missing, ASSET, "upload/a", true)]);
    assert_eq!(kept.missing, 1);
}

#[test]
fn a_damaged_object_proves_nothing() {
    let proof = Case::default().asset("upload/a", "A").version("upload/a", "A", true, true).proof();
    assert_eq!((proof.proven, proof.missing, proof.mismatched, proof.untracked), (0, 1, 0, 0));
    // A damaged one of other content is as little there as one of the right content.
    let proof = Case::default().asset("upload/a", "A").version("upload/a", "B", true, true).proof();
    assert_eq!((proof.missing, proof.mismatched), (1, 0));
    // The same content in a whole object does prove.
    let proof = Case::default().asset("upload/a", "A").version("upload/a", "A", true, true).stands("upload/b", "A").proof();
    assert_eq!((proof.proven, proof.moved), (1, 1));
    let proof = Case::default().asset("upload/a", "A").version("upload/a", "A", true, true).version("upload/a", "A", false, false).proof();
    assert_eq!(names(&proof), [(Verdict::Missing, ASSET, "upload/a", true)]);
    // Companions, external files and derived ones alike.
    let proof = Case::default()
        .names(Thing::Sidecar, "upload/s", None, false)
        .version("upload/s", "S", true, true)
        .names(Thing::Asset, "nas:e", None, false)
        .version("nas:e", "E", true, true)
        .names(Thing::Derived, "thumbs/t", None, false)
        .version("thumbs/t", "T", true, true)
        .proof();
    assert_eq!((proof.companions.missing, proof.unprovable, proof.missing, proof.derived.missing, proof.untracked), (1, 0, 1, 1, 0));
}

#[test]
fn an_asset_without_checksum_is_unprovable_offline_or_missing() {
    let case = Case::default()
        .names(Thing::Asset, "nas:here", None, false)
        .stands("nas:here", "x")
        .names(Thing::Asset, "nas:here-and-offline", None, true)
        .stands("nas:here-and-offline", "x")
        .names(Thing::Asset, "nas:offline", None, true)
        .names(Thing::Asset, "nas:gone", None, false);
    let proof = case.proof();
    assert_eq!((proof.assets, proof.unprovable, proof.offline, proof.missing, proof.proven), (4, 2, 1, 1, 0));
    assert_eq!(names(&proof), [(Verdict::Missing, ASSET, "external/nas/gone", false), (Verdict::Offline, ASSET, "external/nas/offline", false)]);
}

#[test]
fn what_immich_calls_gone_is_missing_all_the_same_where_it_has_a_checksum() {
    let proof = Case::default().names(Thing::Asset, "upload/a", Some("A"), true).names_outside(Thing::Asset, "/mnt/b", Some("B"), true).proof();
    assert_eq!((proof.missing, proof.offline), (2, 0));
}

#[test]
fn an_asset_of_no_root_is_outside_unless_it_has_a_checksum() {
    let case = Case::default()
        .names_outside(Thing::Asset, "/mnt/a", None, false)
        .names_outside(Thing::Asset, "/mnt/b", None, true)
        .names_outside(Thing::Asset, "/old/place/c", Some("C"), false)
        .names_outside(Thing::Asset, "/old/place/d", Some("D"), false)
        .names_outside(Thing::Asset, "/old/place/e", Some("E"), false)
        .stands("upload/d", "D")
        .version("upload/e", "E", false, false);
    let proof = case.proof();
    assert_eq!((proof.assets, proof.outside, proof.offline, proof.missing, proof.proven, proof.moved), (5, 1, 1, 2, 1, 1));
    assert_eq!(
        names(&proof),
        [
            (Verdict::Missing, ASSET, "/old/place/c", false),
            (Verdict::Missing, ASSET, "/old/place/e", true),
            (Verdict::Outside, ASSET, "/mnt/a", false),
            (Verdict::Offline, ASSET, "/mnt/b", false),
            (Verdict::Proven, ASSET, "/old/place/d", false),
            (Verdict::Untracked, None, "upload/d", false),
        ]
    );
}

#[test]
fn what_is_outside_counts_unless_it_was_left_out_on_purpose() {
    let proof = Case::default().names_outside(Thing::Asset, "/mnt/a", None, false).proof();
    assert!(!proof.is_complete() && proof.is_complete_inside());
}

#[test]
fn companions_are_there_or_missing_by_name_and_derived_files_are_counted_alone() {
    let case = Case::default()
        .names(Thing::Sidecar, "upload/a.xmp", None, false)
        .names(Thing::Sidecar, "upload/b.xmp", None, false)
        .names(Thing::Profile, "profile/p", None, false)
        .names(Thing::Profile, "profile/q", None, false)
        .names(Thing::Derived, "thumbs/a", None, false)
        .names(Thing::Derived, "thumbs/b", None, false)
        .stands("upload/a.xmp", "a")
        .stands("profile/p", "p")
        .stands("thumbs/a", "t");
    let proof = case.proof();
    assert_eq!((proof.assets, proof.untracked), (0, 0));
    assert_eq!((proof.companions, proof.derived), (Presence { present: 2, missing: 2 }, Presence { present: 1, missing: 1 }));
    assert_eq!(names(&proof), [(Verdict::Missing, Some(Thing::Profile), "profile/q", false), (Verdict::Missing, Some(Thing::Sidecar), "upload/b.xmp", false)]);
    assert_eq!(proof.named[1].asset, Some(id(1)));
    assert!(!proof.is_complete_inside());
}

#[test]
fn missing_thumbnails_do_not_spoil_a_proof() {
    let proof = Case::default().names(Thing::Derived, "thumbs/a", None, false).proof();
    assert!(proof.is_complete() && proof.named.is_empty());
}

#[test]
fn of_what_lies_in_no_root_profile_pictures_are_missing_and_sidecars_belong_to_their_asset() {
    let case = Case::default().names_outside(Thing::Sidecar, "/mnt/a.xmp", None, false).names_outside(Thing::Profile, "/old/p", None, false).names_outside(
        Thing::Derived,
        "/old/t",
        None,
        false,
    );
    let proof = case.proof();
    assert_eq!((proof.companions, proof.derived), (Presence { present: 0, missing: 1 }, Presence { present: 0, missing: 1 }));
    assert_eq!(names(&proof), [(Verdict::Missing, Some(Thing::Profile), "/old/p", false)]);
}

#[test]
fn files_that_nothing_names_are_untracked_but_for_markers() {
    let case = Case::default()
        .stands("upload/.immich", "1")
        .stands("upload/a/.immich", "1")
        .stands("upload/x", "x")
        .stands("thumbs/t", "t")
        .stands("nas:x", "x")
        .version("upload/broken", "b", true, true)
        .version("upload/gone", "g", false, false);
    let proof = case.proof();
    assert_eq!(proof.untracked, 5);
    let paths: Vec<_> = proof.named.iter().map(|named| (named.verdict, named.path.as_str())).collect();
    assert_eq!(paths, ["thumbs/t", "upload/broken", "upload/x", "upload/a/.immich", "external/nas/x"].map(|path| (Verdict::Untracked, path)));
    assert!(proof.named.iter().all(|named| named.thing.is_none() && named.asset.is_none() && !named.kept));
    assert!(proof.is_complete());
}

#[test]
fn several_things_may_name_one_file_and_each_asset_counts() {
    let case = Case::default()
        .asset("upload/a", "A")
        .asset("upload/a", "A")
        .asset("upload/a", "B")
        .names(Thing::Sidecar, "upload/a", None, false)
        .names(Thing::Derived, "upload/a", None, false)
        .stands("upload/a", "A")
        .stands("upload/b", "x");
    let proof = case.proof();
    assert_eq!((proof.assets, proof.proven, proof.mismatched, proof.companions.present, proof.derived.present, proof.untracked), (3, 2, 1, 1, 1, 1));
}

#[test]
fn a_path_is_a_path_of_its_own_root_only() {
    let proof = Case::default().names(Thing::Asset, "nas:a", None, false).stands("a", "A").stands("tape:a", "A").proof();
    assert_eq!((proof.unprovable, proof.missing, proof.untracked), (0, 1, 2));
}

#[test]
fn what_is_not_in_order_is_refused() {
    let files = |paths: &[&str]| -> Vec<StandingFile> {
        paths.iter().map(|path| StandingFile { file: file(path), sha1: sha1("x"), since: 1, key: None, damaged: false }).collect()
    };
    let named = |paths: &[&str]| -> Vec<Named> {
        paths.iter().map(|path| Named { thing: Thing::Derived, file: file(path), asset: None, sha1: None, offline: false }).collect()
    };
    let run = |names: &[&str], stand: &[&str]| {
        let (named, files) = (named(names).into_iter().map(Ok), files(stand).into_iter().map(Ok));
        prove(named, [], files, |_| Ok::<_, OutOfOrder>(Whereabouts::Nowhere), &Looks::new([], at(0))).map(|proof| proof.untracked)
    };
    let refused = |earlier: &str, later: &str| Err(OutOfOrder { earlier: file(earlier), later: file(later) });
    assert_eq!(run(&["a", "b", "b", "a/a", "nas:a"], &["a", "b", "a/a", "nas:a"]), Ok(0));
    assert_eq!(run(&["b", "a"], &[]), refused("b", "a"));
    assert_eq!(run(&["nas:a", "b"], &[]), refused("nas:a", "b"));
    assert_eq!(run(&[], &["b", "a"]), refused("b", "a"));
    assert_eq!(run(&[], &["a", "a"]), refused("a", "a"), "a file stands once");
    assert_eq!(run(&["z"], &["a/b", "c"]), refused("a/b", "c"), "folders come before names");
    assert_eq!(run(&["a", "c"], &["b", "b"]), refused("b", "b"));
    assert_eq!(refused("b", "a").unwrap_err().to_string(), "cannot compare the dump with the snapshot: `a` came after `b`");
}

#[test]
fn an_error_of_either_side_ends_the_proof() {
    #[derive(Debug, PartialEq)]
    struct Failed(u8);
    impl From<OutOfOrder> for Failed {
        fn from(_: OutOfOrder) -> Self {
            Self(0)
        }
    }
    let asset = || Named { thing: Thing::Asset, file: file("a"), asset: None, sha1: Some(sha1("A")), offline: false };
    let looks = Looks::new([], at(0));
    let nowhere = |_: &Sha1| Ok(Whereabouts::Nowhere);
    assert_eq!(prove([Err(Failed(1))], [], [], nowhere, &looks), Err(Failed(1)));
    assert_eq!(prove([], [Err(Failed(2))], [], nowhere, &looks), Err(Failed(2)));
    assert_eq!(prove([], [], [Err(Failed(3))], nowhere, &looks), Err(Failed(3)));
    assert_eq!(prove([Ok(asset())], [], [], |_| Err(Failed(4)), &looks), Err(Failed(4)));
}

#[test]
fn names_are_the_first_of_each_kind_and_missing_assets_go_before_what_belongs_to_them() {
    let mut case = Case::default();
    for number in 0..PROOF_NAMED_MAX + 5 {
        case = case.names(Thing::Sidecar, &format!("upload/{number:03}.xmp"), None, false).stands(&format!("upload/u{number:03}"), &number.to_string());
    }
    let proof = case.proof();
    let most = PROOF_NAMED_MAX as u64;
    assert_eq!((proof.companions.missing, proof.untracked), (most + 5, most + 5));
    let count = |proof: &Proof, verdict| proof.named.iter().filter(|named| named.verdict == verdict).count();
    assert_eq!((count(&proof, Verdict::Missing), count(&proof, Verdict::Untracked)), (PROOF_NAMED_MAX, PROOF_NAMED_MAX));
    assert_eq!(proof.named[0].path, "upload/000.xmp");
    assert_eq!(proof.named[PROOF_NAMED_MAX].path, "upload/u000");
    let proof = case.asset("upload/z1", "no").asset("upload/z2", "no").proof();
    assert_eq!(count(&proof, Verdict::Missing), PROOF_NAMED_MAX);
    let first: Vec<_> = proof.named.iter().take(3).map(|named| named.path.as_str()).collect();
    assert_eq!(first, ["upload/z1", "upload/z2", "upload/000.xmp"]);
}

#[test]
fn names_from_a_hostile_dump_are_shown_without_their_control_characters() {
    let proof = Case::default().names_outside(Thing::Asset, "/mnt/\u{1b}[2Ja\n", None, false).proof();
    assert_eq!(proof.named[0].path, "/mnt/%1B[2Ja%0A");
}

#[test]
fn ages_are_those_of_the_object_that_proves() {
    let mut case = Case::default().asset("upload/a", "A").stands("upload/a", "A").asset("upload/b", "B").stands("library/b", "B").asset("upload/c", "C");
    case = case.names(Thing::Asset, "nas:e", None, false).stands("nas:e", "E").names(Thing::Sidecar, "upload/s", None, false).stands("upload/s", "S");
    case.versions[1].file.since = 5;
    case.versions[2].file.since = 9;
    case.snapshots = vec![(2, 20), (6, 60)];
    case.listings = vec![(4, 40), (6, 61)];
    case.readings = vec![(9, 99, Part { of: 1_000_000, part: Part::at(1_000_000, Part::position("key of nas:e")).part }), (3, 30, Part::ALL)];
    let recorded = Age { assets: 3, oldest: Some(at(20)) };
    let listed = Age { assets: 2, oldest: Some(at(61)) };
    let read = Age { assets: 2, oldest: Some(at(30)) };
    assert_eq!(case.proof().ages, Ages { recorded, listed, read });
}

#[test]
fn the_headline_says_how_many_of_those_that_can_be_proven_and_what_is_wrong() {
    let proof = Proof { assets: 97, proven: 93, unprovable: 4, untracked: 3, ..Proof::default() };
    assert_eq!(proof.headline(), "proven 93 of 93, 4 external");
    let proof = Proof { assets: 97, proven: 92, missing: 1, outside: 4, ..Proof::default() };
    assert_eq!(proof.headline(), "proven 92 of 93, 1 missing, 4 outside");
    let companions = Presence { present: 7, missing: 1 };
    let proof = Proof { assets: 1_300_009, proven: 1_300_000, mismatched: 2, missing: 3, unprovable: 1, outside: 2, offline: 1, companions, ..proof };
    assert_eq!(proof.headline(), "proven 1300000 of 1300005, 2 mismatched, 3 missing, 1 sidecar or picture missing, 1 external, 2 outside, 1 offline");
    let proof = Proof { companions: Presence { present: 0, missing: 2 }, ..Proof::default() };
    assert_eq!(proof.headline(), "no assets, 2 sidecars or pictures missing");
    for (proof, complete, inside) in [
        (Proof::default(), true, true),
        (Proof { mismatched: 1, ..Proof::default() }, false, false),
        (Proof { missing: 1, ..Proof::default() }, false, false),
        (Proof { companions, ..Proof::default() }, false, false),
        (Proof { outside: 1, ..Proof::default() }, false, true),
        (Proof { offline: 1, moved: 1, untracked: 1, derived: companions, ..Proof::default() }, true, true),
    ] {
        assert_eq!((proof.is_complete(), proof.is_complete_inside()), (complete, inside), "{proof:?}");
    }
}

/// The proof as the design states it: for each thing, look at everything.
fn reference(case: &Case) -> Proof {
    let mut proof = Proof::default();
    let mut ages: Vec<(u64, String)> = Vec::new();
    let mut named: Vec<NamedVerdict> = Vec::new();
    let everything = case
        .named
        .iter()
        .map(|n| (n.thing, Some(&n.file), n.file.to_string(), n.asset, n.sha1, n.offline))
        .chain(case.outside.iter().map(|o| (o.thing, None, o.path.clone(), o.asset, o.sha1, o.offline)));
    for (thing, path, shown, asset, wanted, offline) in everything {
        let whole = || case.versions.iter().filter(|v| !v.file.damaged);
        let here = whole().find(|v| v.stands && Some(&v.file.file) == path);
        let mut say = |verdict, kept| named.push(NamedVerdict { verdict, thing: Some(thing), path: shown.clone(), asset, kept });
        match thing {
            Thing::Derived => *(if here.is_some() { &mut proof.derived.present } else { &mut proof.derived.missing }) += 1,
            Thing::Sidecar if path.is_none() => {}
            Thing::Sidecar | Thing::Profile if here.is_some() => proof.companions.present += 1,
            Thing::Sidecar | Thing::Profile => {
                proof.companions.missing += 1;
                say(Verdict::Missing, false);
            }
            Thing::Asset => {
                proof.assets += 1;
                let proves = |v: &&Version| match wanted {
                    Some(sha1) => v.stands && v.file.sha1 == sha1,
                    None => v.stands && Some(&v.file.file) == path,
                };
                let kept = whole().any(|v| Some(v.file.sha1) == wanted);
                let by = here.filter(proves).or_else(|| whole().find(proves));
                if let Some(by) = by {
                    ages.push((by.file.since, by.file.key.clone().unwrap()));
                    if wanted.is_none() {
                        proof.unprovable += 1;
                    } else {
                        proof.proven += 1;
                        if Some(&by.file.file) != path {
                            proof.moved += 1;
                            say(Verdict::Proven, false);
                        }
                    }
                } else if wanted.is_none() && offline {
                    proof.offline += 1;
                    say(Verdict::Offline, false);
                } else if wanted.is_none() && path.is_none() {
                    proof.outside += 1;
                    say(Verdict::Outside, false);
                } else if here.is_some() {
                    proof.mismatched += 1;
                    say(Verdict::Mismatched, kept);
                } else {
                    proof.missing += 1;
                    say(Verdict::Missing, kept);
                }
            }
        }
    }
    for version in case.versions.iter().filter(|v| v.stands) {
        let path = version.file.file.to_string();
        let marker = matches!(path.as_str(), "upload/.immich" | "thumbs/.immich");
        if !marker && !case.named.iter().any(|n| n.file == version.file.file) {
            proof.untracked += 1;
            named.push(NamedVerdict { verdict: Verdict::Untracked, thing: None, path, asset: None, kept: false });
        }
    }
    let age = |times: Vec<Timestamp>| Age { assets: times.len() as u64, oldest: times.into_iter().min() };
    let recorded = |since: &u64| case.snapshots.iter().filter(|(entry, _)| entry >= since).min().map_or(at(NOW), |(_, second)| at(*second));
    let listed = |since: &u64| case.listings.iter().filter(|(covers, _)| covers >= since).map(|(_, second)| at(*second)).max();
    let read =
        |since: &u64, key: &str| case.readings.iter().filter(|(covers, _, part)| covers >= since && part.has(key)).map(|(_, second, _)| at(*second)).max();
    proof.ages = Ages {
        recorded: age(ages.iter().map(|(since, _)| recorded(since)).collect()),
        listed: age(ages.iter().filter_map(|(since, _)| listed(since)).collect()),
        read: age(ages.iter().filter_map(|(since, key)| read(since, key)).collect()),
    };
    proof.named = named;
    proof
}

/// Folders and names whose order as paths is another than by folder and name.
fn arbitrary_path() -> impl Strategy<Value = String> {
    let paths = [
        "upload/a",
        "upload/a/a",
        "upload/a!",
        "upload/a!/b",
        "upload",
        "upload/.immich",
        "thumbs/.immich",
        "thumbs/a/.immich",
        "thumbs/é",
        "z",
        "nas:upload/a",
        "nas:z",
        "a:z",
    ];
    prop::sample::select(paths.map(str::to_owned).to_vec())
}

fn arbitrary_content() -> impl Strategy<Value = String> {
    prop::sample::select(["A", "B", "C", "D"].map(str::to_owned).to_vec())
}

fn arbitrary_thing() -> impl Strategy<Value = Thing> {
    prop_oneof![4 => Just(Thing::Asset), 1 => Just(Thing::Sidecar), 1 => Just(Thing::Profile), 1 => Just(Thing::Derived)]
}

prop_compose! {
    fn arbitrary_case()(
        named in prop::collection::vec((arbitrary_thing(), arbitrary_path(), prop::option::of(arbitrary_content()), any::<bool>()), 0..12),
        outside in prop::collection::vec((arbitrary_thing(), prop::option::of(arbitrary_content()), any::<bool>()), 0..4),
        versions in prop::collection::vec((arbitrary_path(), arbitrary_content(), any::<bool>(), prop::bool::weighted(0.2), 0..8_u64), 0..14),
        snapshots in prop::collection::btree_map(0..8_u64, 0..50_i64, 0..3),
        listings in prop::collection::vec((0..8_u64, 0..50_i64), 0..3),
        readings in prop::collection::vec((0..8_u64, 0..50_i64, 1..4_u64, 0..4_u64), 0..4),
    ) -> Case {
        let mut case = Case { snapshots: snapshots.into_iter().collect(), listings, ..Case::default() };
        case.readings = readings.into_iter().map(|(covers, second, of, part)| (covers, second, Part { of, part: part % of })).collect();
        for (thing, path, content, offline) in named {
            case = case.names(thing, &path, content.as_deref(), offline);
        }
        for (number, (thing, content, offline)) in outside.into_iter().enumerate() {
            case = case.names_outside(thing, &format!("/mnt/{number}"), content.as_deref(), offline);
        }
        let mut standing = BTreeSet::new();
        for (path, content, stands, damaged, since) in versions {
            // One version of a path stands at a time.
            let stands = stands && standing.insert(path.clone());
            case = case.version(&path, &content, stands, damaged);
            let last = case.versions.last_mut().unwrap();
            last.file.since = since;
            last.file.key = Some(format!("{path} {content}"));
        }
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn one_pass_says_what_looking_at_everything_says(case in arbitrary_case()) {
        let (mut proof, mut expected) = (case.proof(), reference(&case));
        let text = |named: &NamedVerdict| format!("{named:?}");
        proof.named.sort_by_key(text);
        expected.named.sort_by_key(text);
        prop_assert_eq!(proof, expected);
    }
}
