//! The proof: what a dump names, compared with what stands in a snapshot. A pure function: nothing is read or asked but what is handed in.
//!
//! Both sides come in the same order, so one pass does, and memory does not grow with the library.

mod looks;

pub use looks::{Known, Looks};

use crate::budget::PROOF_NAMED_MAX;
use crate::database::inventory::{Named, Outside};
use crate::library::layout::class_of;
use crate::model::{Class, FilePath, Sha1, encode_segment};
use crate::repository::manifest::{StandingFile, Whereabouts};
use crate::verdict::{NamedVerdict, Proof, Thing, Verdict};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What should come in order did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot compare the dump with the snapshot: `{later}` came after `{earlier}`")]
pub struct OutOfOrder {
    /// What came first.
    pub earlier: FilePath,
    /// What came next, and belongs before it.
    pub later: FilePath,
}

/// Compares what a dump names with what stands in a snapshot.
///
/// `named` and `files` are ordered by external library (the media location first), folder and name, each compared as bytes; a file comes once,
/// what is named may come several times. `find` says where the content of a SHA-1 is. A file whose object is known to be missing or damaged counts as absent.
///
/// - An asset whose content has a checksum is [`Verdict::Proven`] if its file has that SHA-1, or if the content stands at another path (it moved).
///   Else it is [`Verdict::Mismatched`] if a file is at its path, and [`Verdict::Missing`] if none is. That its path belongs to no root changes nothing:
///   such an asset was uploaded to Immich, and if its content stands nowhere the backup lacks it, whatever the reason.
/// - An asset without one is [`Verdict::Unprovable`] if a file is at its path, else [`Verdict::Offline`] if Immich says that it is gone, else
///   [`Verdict::Outside`] if its path belongs to no root, else [`Verdict::Missing`].
/// - Sidecars and profile pictures are there or [`Verdict::Missing`]; what Immich can make again is counted alone. Of what belongs to no root, sidecars are passed
///   over: they lie beside an asset that is outside, and that one is counted.
/// - A file that nothing names is [`Verdict::Untracked`], unless it is a marker. That holds also for the place to which an asset has moved since the dump.
///
/// # Errors
/// What the streams or `find` return, or [`OutOfOrder`].
pub fn prove<E: From<OutOfOrder>>(
    named: impl IntoIterator<Item = Result<Named, E>>,
    outside: impl IntoIterator<Item = Result<Outside, E>>,
    files: impl IntoIterator<Item = Result<StandingFile, E>>,
    find: impl FnMut(&Sha1) -> Result<Whereabouts, E>,
    looks: &Looks,
) -> Result<Proof, E> {
    let mut judge = Judge { find, looks, proof: Proof::default(), worth_naming: BTreeMap::new() };
    let mut files = Files { files: files.into_iter(), current: None, is_named: false };
    files.advance(&mut judge)?;
    let mut last: Option<FilePath> = None;
    for thing in named {
        let thing = thing?;
        if let Some(earlier) = last.take()
            && order(&thing.file, &earlier) == Ordering::Less
        {
            return Err(OutOfOrder { earlier, later: thing.file }.into());
        }
        let here = loop {
            match files.current.as_ref().map(|file| order(&file.file, &thing.file)) {
                Some(Ordering::Less) => files.advance(&mut judge)?,
                Some(Ordering::Equal) => break files.current.as_ref(),
                Some(Ordering::Greater) | None => break None,
            }
        };
        files.is_named |= here.is_some();
        judge.named(&thing, here.filter(|file| !file.damaged))?;
        last = Some(thing.file);
    }
    while files.current.is_some() {
        files.advance(&mut judge)?;
    }
    for thing in outside {
        judge.outside(&thing?)?;
    }
    Ok(judge.finish())
}

/// External library, folder, name: as bytes, which is how texts compare.
fn order(a: &FilePath, b: &FilePath) -> Ordering {
    fn parts(file: &FilePath) -> (&str, (&str, &str)) {
        (file.root.name_in_manifest(), file.path.split())
    }
    parts(a).cmp(&parts(b))
}

/// The files of the snapshot, one at a time.
struct Files<I> {
    files: I,
    current: Option<StandingFile>,
    /// Whether anything names the current one.
    is_named: bool,
}

impl<I> Files<I> {
    /// Goes on to the next file; the one before is untracked if nothing named it.
    fn advance<E: From<OutOfOrder>, F>(&mut self, judge: &mut Judge<'_, F>) -> Result<(), E>
    where
        I: Iterator<Item = Result<StandingFile, E>>,
    {
        let next = self.files.next().transpose()?;
        let is_named = std::mem::take(&mut self.is_named);
        if let Some(before) = self.current.take() {
            if let Some(later) = next.as_ref().filter(|next| order(&before.file, &next.file) != Ordering::Less) {
                return Err(OutOfOrder { earlier: before.file, later: later.file.clone() }.into());
            }
            if !is_named && before.file.root.is_of_immich() && class_of(&before.file) != Class::Marker {
                judge.proof.untracked += 1;
                judge.name(Verdict::Untracked, None, &before.file, None, false);
            }
        }
        self.current = next;
        Ok(())
    }
}

/// What is worth naming, by what it is: the order in which it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    MissingAsset,
    MissingCompanion,
    Mismatched,
    Outside,
    Offline,
    Moved,
    Untracked,
}

struct Judge<'a, F> {
    find: F,
    looks: &'a Looks,
    proof: Proof,
    worth_naming: BTreeMap<Rank, Vec<NamedVerdict>>,
}

impl<F> Judge<'_, F> {
    fn name(&mut self, verdict: Verdict, thing: Option<Thing>, path: &impl ToString, asset: Option<Uuid>, kept: bool) {
        let rank = match (verdict, thing) {
            (Verdict::Missing, Some(Thing::Asset)) => Rank::MissingAsset,
            (Verdict::Missing, _) => Rank::MissingCompanion,
            (Verdict::Mismatched, _) => Rank::Mismatched,
            (Verdict::Outside, _) => Rank::Outside,
            (Verdict::Offline, _) => Rank::Offline,
            (Verdict::Proven | Verdict::Unprovable, _) => Rank::Moved,
            (Verdict::Untracked, _) => Rank::Untracked,
        };
        let names = self.worth_naming.entry(rank).or_default();
        if names.len() < PROOF_NAMED_MAX {
            names.push(NamedVerdict { verdict, thing, path: path.to_string(), asset, kept });
        }
    }

    fn know<K: AsRef<str>>(&mut self, since: u64, key: impl Fn() -> K) {
        let known = self.looks.of(since, key);
        let ages = &mut self.proof.ages;
        ages.recorded.add(known.recorded);
        if let Some(at) = known.listed {
            ages.listed.add(at);
        }
        if let Some(at) = known.read {
            ages.read.add(at);
        }
    }

    fn finish(mut self) -> Proof {
        let missing_assets = self.worth_naming.get(&Rank::MissingAsset).map_or(0, Vec::len);
        if let Some(companions) = self.worth_naming.get_mut(&Rank::MissingCompanion) {
            companions.truncate(PROOF_NAMED_MAX.saturating_sub(missing_assets));
        }
        self.proof.named = self.worth_naming.into_values().flatten().collect();
        self.proof
    }
}

impl<F, E> Judge<'_, F>
where
    F: FnMut(&Sha1) -> Result<Whereabouts, E>,
{
    /// `here`: the undamaged file at its path.
    fn named(&mut self, thing: &Named, here: Option<&StandingFile>) -> Result<(), E> {
        let Named { file, asset, .. } = thing;
        match (thing.thing, thing.sha1) {
            (Thing::Asset, Some(sha1)) => return self.checksummed(&sha1, here, file, *asset),
            (Thing::Asset, None) => {
                self.proof.assets += 1;
                match here {
                    Some(here) => {
                        self.proof.unprovable += 1;
                        self.know(here.since, || here.object_key());
                    }
                    None if thing.offline => self.offline(file, *asset),
                    None => self.missing(file, *asset, false),
                }
            }
            (Thing::Sidecar | Thing::Profile, _) => self.companion(thing.thing, here.is_some(), file, *asset),
            (Thing::Derived, _) => self.derived(here.is_some()),
        }
        Ok(())
    }

    fn outside(&mut self, thing: &Outside) -> Result<(), E> {
        // As safe to show as any other path.
        let path = encode_segment(thing.path.as_bytes());
        match (thing.thing, thing.sha1) {
            (Thing::Asset, Some(sha1)) => return self.checksummed(&sha1, None, &path, thing.asset),
            (Thing::Asset, None) => {
                self.proof.assets += 1;
                if thing.offline {
                    self.offline(&path, thing.asset);
                } else {
                    self.proof.outside += 1;
                    self.name(Verdict::Outside, Some(Thing::Asset), &path, thing.asset, false);
                }
            }
            (Thing::Sidecar, _) => {}
            (Thing::Profile, _) => self.companion(thing.thing, false, &path, thing.asset),
            (Thing::Derived, _) => self.derived(false),
        }
        Ok(())
    }

    /// An asset whose content has a checksum.
    fn checksummed(&mut self, sha1: &Sha1, here: Option<&StandingFile>, path: &impl ToString, asset: Option<Uuid>) -> Result<(), E> {
        self.proof.assets += 1;
        if let Some(here) = here.filter(|here| here.sha1 == *sha1) {
            self.proof.proven += 1;
            self.know(here.since, || here.object_key());
            return Ok(());
        }
        match (self.find)(sha1)? {
            Whereabouts::Stands { since, key } => {
                self.proof.proven += 1;
                self.proof.moved += 1;
                self.know(since, || &key);
                self.name(Verdict::Proven, Some(Thing::Asset), path, asset, false);
            }
            elsewhere => {
                let kept = elsewhere == Whereabouts::Kept;
                if here.is_some() {
                    self.proof.mismatched += 1;
                    self.name(Verdict::Mismatched, Some(Thing::Asset), path, asset, kept);
                } else {
                    self.missing(path, asset, kept);
                }
            }
        }
        Ok(())
    }

    fn missing(&mut self, path: &impl ToString, asset: Option<Uuid>, kept: bool) {
        self.proof.missing += 1;
        self.name(Verdict::Missing, Some(Thing::Asset), path, asset, kept);
    }

    fn offline(&mut self, path: &impl ToString, asset: Option<Uuid>) {
        self.proof.offline += 1;
        self.name(Verdict::Offline, Some(Thing::Asset), path, asset, false);
    }

    fn companion(&mut self, thing: Thing, present: bool, path: &impl ToString, asset: Option<Uuid>) {
        self.proof.companions.count(present);
        if !present {
            self.name(Verdict::Missing, Some(thing), path, asset, false);
        }
    }

    fn derived(&mut self, present: bool) {
        self.proof.derived.count(present);
    }
}

#[cfg(test)]
mod tests;
