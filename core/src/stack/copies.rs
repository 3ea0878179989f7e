//! The stack's own configuration, copied for the backup: its Compose files, its files of variables, and what its containers were made of.
//!
//! On the bad day they burnt with the host. A copy that would be the same is left alone, times and all, so that it makes no new version.

use super::compose::{Compose, FILE_BYTES_MAX, VARIABLES_FILE};
use super::project::{Container, WORKING_DIR};
use super::redact::Redactor;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

/// What the containers were made of.
pub const CONTAINERS_FILE: &str = "containers.json";

/// Our own variables, if somebody keeps them beside the stack's.
const OWN_FILE: &str = "immich-backup.env";

/// Where files that lie outside of the project's folder are kept.
const ELSEWHERE: &str = "elsewhere";

const VERSION_LABEL: &str = "org.opencontainers.image.version";

/// How many files of a project are copied.
const FILES_MAX: usize = 256;

/// What is to be copied.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// The project's folder, where this program finds it.
    pub folder: Option<PathBuf>,
    /// Its Compose files, where this program finds them.
    pub compose_files: Vec<PathBuf>,
    /// Its files of variables.
    pub environment_files: Vec<PathBuf>,
    /// Its containers; their environment is asked for secrets alone, and not written.
    pub containers: Vec<Container>,
    /// The digests by which registries know images, by the image's id.
    pub digests: BTreeMap<String, Vec<String>>,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files that are there now, relative to the folder of copies.
    pub files: Vec<String>,
    /// Secrets that were taken out.
    pub redacted: u64,
    /// What could not be copied, in words.
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Yaml,
    Variables,
}

impl Configuration {
    /// Adds the files that `compose` was read from.
    pub fn add(&mut self, compose: &Compose) {
        self.compose_files.extend(compose.files.iter().cloned());
        self.environment_files.extend(compose.environment_files.iter().cloned());
    }

    /// All files, each once, and what they are.
    fn files(&self) -> Vec<(PathBuf, Form)> {
        let mut seen = BTreeSet::new();
        let beside = self.folder.iter().flat_map(|folder| [VARIABLES_FILE, OWN_FILE].map(|name| folder.join(name))).filter(|path| path.exists());
        let compose = self.compose_files.iter().cloned().map(|path| (path, Form::Yaml));
        let variables = self.environment_files.iter().cloned().chain(beside).map(|path| (path, Form::Variables));
        compose.chain(variables).filter(|(path, _)| seen.insert(path.clone())).take(FILES_MAX).collect()
    }

    /// What a file is called among the copies.
    fn name(&self, path: &Path) -> PathBuf {
        if let Some(below) = self.folder.as_ref().and_then(|folder| path.strip_prefix(folder).ok()) {
            return below.to_owned();
        }
        let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
        Path::new(ELSEWHERE).join(parts.collect::<PathBuf>())
    }

    /// Makes `folder` hold a copy of each file, without secrets unless `with_secrets`, and nothing else.
    ///
    /// # Errors
    /// The folder cannot be written. A file that cannot be copied is a problem, and no error: it is not the photos.
    pub fn copy_to(&self, folder: &Path, with_secrets: bool) -> io::Result<Copied> {
        let (mut copied, mut redactor) = (Copied::default(), Redactor::default());
        let mut texts: Vec<(PathBuf, Form, String, Timespec)> = Vec::new();
        for (path, form) in self.files() {
            match read(&path) {
                Ok((text, mtime)) => texts.push((path, form, text, mtime)),
                Err(error) => copied.problems.push(format!("cannot read `{}`: {error}", path.display())),
            }
        }
        for (_, _, text, _) in texts.iter().filter(|(_, form, ..)| *form == Form::Yaml) {
            redactor.learn_names(text);
        }
        // One file may use what another one says: until none teaches any more.
        let variables: Vec<_> = texts.iter().filter(|(_, form, ..)| *form == Form::Variables).map(|(_, _, text, _)| text.as_str()).collect();
        while variables.iter().any(|text| redactor.learn_variables(text)) {}
        for container in &self.containers {
            container.environment.iter().for_each(|(name, value)| redactor.learn(name, value));
        }
        let mut copies = Vec::new();
        for (path, form, text, mtime) in texts {
            let without = match form {
                _ if with_secrets => Ok(text),
                Form::Yaml => redactor.yaml(&text),
                Form::Variables => redactor.variables(&text),
            };
            match without {
                Ok(text) => copies.push((self.name(&path), text, Some(mtime))),
                Err(error) => copied.problems.push(format!("`{}` is not stored, for its secrets cannot be told apart: {error}", path.display())),
            }
        }
        if !self.containers.is_empty() {
            let mut text = serde_json::to_string_pretty(&self.described()).map_err(io::Error::other)?;
            text.push('\n');
            copies.push((PathBuf::from(CONTAINERS_FILE), text, None));
        }
        let mut kept = BTreeSet::new();
        for (name, text, mtime) in copies {
            // What was learnt from later files may stand in earlier ones.
            let text = if with_secrets { text } else { redactor.swept(&text) };
            write(&folder.join(&name), text.as_bytes(), mtime)?;
            copied.files.push(name.display().to_string());
            kept.insert(folder.join(name));
        }
        remove_others(folder, &kept)?;
        copied.redacted = redactor.count;
        copied.files.sort();
        Ok(copied)
    }

    /// What the containers were made of; nothing that changes while they run.
    fn described(&self) -> Value {
        let mut containers: Vec<_> = self.containers.iter().collect();
        containers.sort_by(|one, other| (&one.service, one.number, &one.name).cmp(&(&other.service, other.number, &other.name)));
        let described = containers.into_iter().map(|container| {
            let mounts = container.mounts.iter().map(|mount| {
                json!({ "host": mount.host.to_string_lossy(), "inside": mount.inside.to_string_lossy(), "volume": mount.volume, "writable": mount.is_writable })
            });
            let mut mounts: Vec<_> = mounts.collect();
            mounts.sort_by_key(|mount| mount.get("inside").map(ToString::to_string));
            json!({
                "name": container.name,
                "service": container.service,
                "image": container.image,
                "image_id": container.image_id,
                "digests": self.digests.get(&container.image_id),
                "version": container.labels.get(VERSION_LABEL),
                "restart": container.restart_policy,
                "network": container.network_mode,
                "mounts": mounts,
            })
        });
        let told = |label: &dyn Fn(&Container) -> Option<String>| self.containers.iter().find_map(label);
        let project = told(&|container| container.project.clone());
        // Where a restore onto a new machine would have it again.
        let working_dir = told(&|container| container.labels.get(WORKING_DIR).cloned());
        json!({ "project": project, "working_dir": working_dir, "containers": described.collect::<Vec<_>>() })
    }
}

fn read(path: &Path) -> io::Result<(String, Timespec)> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file of a few kilobytes"));
    }
    let text = io::read_to_string(file)?;
    Ok((text, Timespec { tv_sec: found.mtime(), tv_nsec: found.mtime_nsec() }))
}

/// Writes a copy under its name, unless it is there already.
fn write(path: &Path, bytes: &[u8], mtime: Option<Timespec>) -> io::Result<()> {
    let is_dated = |found: &fs::Metadata| mtime.is_none_or(|mtime| (found.mtime(), found.mtime_nsec()) == (mtime.tv_sec, mtime.tv_nsec));
    if fs::metadata(path).is_ok_and(|found| is_dated(&found)) && fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    drop(file);
    if let Some(mtime) = mtime {
        utimensat(CWD, &part, &Timestamps { last_access: mtime, last_modification: mtime }, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    fs::rename(part, path)
}

fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(&path, kept)?;
            // Only if nothing is left in it.
            drop(fs::remove_dir(&path));
        } else if !kept.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let time = Timespec { tv_sec: 1_500_000_000, tv_nsec: 5 };
        utimensat(CWD, &path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        path
    }

    fn stamp(path: &Path) -> (i64, i64, u64) {
        let found = fs::metadata(path).unwrap();
        (found.ctime(), found.ctime_nsec(), found.ino())
    }

    #[test]
    fn files_are_copied_without_secrets_with_their_times_and_only_when_they_changed() {
        let place = tempfile::tempdir().unwrap();
        let (stack, copies) = (place.path().join("stack"), place.path().join("copies"));
        at(&stack, "docker-compose.yml", "services:\n  db:\n    env_file: [more/db.env]\n    environment: {POSTGRES_PASSWORD: \"${PW}\"}\n");
        at(&stack, ".env", "PW=S3cret-word\nTZ=UTC\n");
        at(&stack, "immich-backup.env", "AWS_SECRET_ACCESS_KEY=An0ther-one\nIMMICH_BACKUP_REPOSITORY=s3://b\n");
        at(&stack, "more/db.env", "# was S3cret-word\nTOKEN=x\n");
        let outside = at(place.path(), "etc/over.yml", "services: {db: {restart: always}}\n");
        let compose = Compose::read(&stack).unwrap();
        let mut configuration = Configuration { folder: Some(stack.clone()), compose_files: vec![outside], ..Configuration::default() };
        configuration.add(&compose);
        configuration.containers = compose.containers();
        let copied = configuration.copy_to(&copies, false).unwrap();
        let elsewhere = format!("elsewhere{}/etc/over.yml", place.path().display());
        assert_eq!(copied.files, [".env", "containers.json", "docker-compose.yml", elsewhere.as_str(), "immich-backup.env", "more/db.env"]);
        assert_eq!((copied.redacted, copied.problems.as_slice()), (4, &[][..]));
        let mark = crate::stack::redact::MARK;
        let read = |name: &str| fs::read_to_string(copies.join(name)).unwrap();
        assert_eq!(read(".env"), format!("PW=\"\" # {mark}\nTZ=UTC\n"));
        assert_eq!(read("more/db.env"), format!("# was {mark}\nTOKEN=\"\" # {mark}\n"));
        assert!(read("immich-backup.env").contains("s3://b") && !read("containers.json").contains("S3cret-word"));
        assert_eq!(fs::metadata(copies.join(".env")).unwrap().mtime(), 1_500_000_000);
        // Again: nothing is written.
        let before: Vec<_> = copied.files.iter().map(|name| stamp(&copies.join(name))).collect();
        configuration.copy_to(&copies, false).unwrap();
        assert_eq!(before, copied.files.iter().map(|name| stamp(&copies.join(name))).collect::<Vec<_>>());
        // One that is gone goes; with secrets all is as it was.
        fs::remove_file(stack.join("immich-backup.env")).unwrap();
        let copied = configuration.copy_to(&copies, true).unwrap();
        assert!(!copies.join("immich-backup.env").exists() && copied.redacted == 0);
        assert_eq!(read(".env"), "PW=S3cret-word\nTZ=UTC\n");
    }

    #[test]
    fn what_a_password_of_another_file_is_made_of_is_a_secret_however_many_files_lie_between() {
        let place = tempfile::tempdir().unwrap();
        let copies = place.path().join("copies");
        let texts = [("first.env", "WORD=B4se-of-it-all\nPART=$WORD\n"), ("second.env", "WHOLE=${PART}-x\n"), ("third.env", "DB_PASSWORD=$WHOLE\n")];
        let mut files = texts.map(|(name, text)| at(place.path(), name, text));
        for _ in 0..2 {
            let configuration = Configuration { environment_files: files.to_vec(), folder: Some(place.path().to_owned()), ..Configuration::default() };
            assert_eq!(configuration.copy_to(&copies, false).unwrap().problems, [""; 0]);
            let stored = fs::read_to_string(copies.join("first.env")).unwrap();
            assert!(stored.starts_with("WORD=\"\" # ") && !stored.contains("B4se"), "{stored}");
            files.reverse();
        }
    }

    #[test]
    fn what_cannot_be_read_or_told_apart_is_a_problem_and_no_error() {
        let place = tempfile::tempdir().unwrap();
        let wrong = at(place.path(), "stack/compose.yaml", "a: [1\n PASSWORD: hunter2");
        let configuration = Configuration { compose_files: vec![wrong, place.path().join("gone.yml")], ..Configuration::default() };
        let copied = configuration.copy_to(&place.path().join("copies"), false).unwrap();
        assert_eq!((copied.files.len(), copied.problems.len()), (0, 2));
        assert!(copied.problems.iter().all(|problem| !problem.contains("hunter2")), "{:?}", copied.problems);
    }
}
