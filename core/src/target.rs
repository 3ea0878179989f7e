//! A folder that files are written to: a restore's target, or a library that is mended. Everything is opened below its handle: no link and no `..` leads outside.

use crate::crash::crash_point;
use crate::durable::syncfs_is_enough;
use crate::library::read::LiveFile;
use crate::model::{RootPath, Sha256};
use crate::repository::manifest::FileRow;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// For folders that nobody but their owner may look into; PostgreSQL demands it.
const PRIVATE: u32 = 0o700;

/// A folder to restore to; made when first needed.
#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    folder: OnceLock<Dir>,
    /// Whether one barrier serves many files.
    barrier: OnceLock<bool>,
    /// The folder above, where this one lies below another target: it is made and opened below that one's handle.
    below: Option<PathBuf>,
    /// Nobody but its owner may look into folders that are made.
    is_private: bool,
    /// Folders that are made belong to whom the folder above belongs.
    inherits: bool,
}

/// What is at the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Same,
    /// The same bytes, with another time or other permissions.
    SameBytes,
    Different,
}

impl Target {
    /// The folder at `path`, made where it is missing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let target = Self::later(path.to_owned());
        target.make()?;
        Ok(target)
    }

    /// Makes the folder where it is missing.
    pub(crate) fn make(&self) -> io::Result<()> {
        self.folder().map(drop)
    }

    /// The folder at `path`, not touched yet.
    pub(crate) fn later(path: PathBuf) -> Self {
        Self { path, folder: OnceLock::new(), barrier: OnceLock::new(), below: None, is_private: false, inherits: false }
    }

    /// The folder `inner` of the target at `outer`, not touched yet; never outside of that.
    pub(crate) fn within(outer: &Path, inner: &Path) -> Self {
        Self { below: Some(outer.to_owned()), ..Self::later(outer.join(inner)) }
    }

    /// The same, with folders that nobody but their owner may look into.
    pub(crate) fn private(self) -> Self {
        Self { is_private: true, ..self }
    }

    /// The same, with folders that belong to whom the folder above belongs.
    pub(crate) fn inheriting(self) -> Self {
        Self { inherits: true, ..self }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn folder(&self) -> io::Result<&Dir> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder);
        }
        let outer = self.below.as_ref().unwrap_or(&self.path);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        if self.is_private && self.below.is_none() {
            builder.mode(PRIVATE);
        }
        builder.create(outer)?;
        let mut folder = Dir::open_ambient_dir(outer, ambient_authority())?;
        if let Some(inner) = self.below.as_ref().and_then(|outer| self.path.strip_prefix(outer).ok()) {
            self.make_folder(&folder, inner)?;
            folder = folder.open_dir(inner)?;
        }
        Ok(self.folder.get_or_init(|| folder))
    }

    fn make_folder(&self, root: &Dir, path: &Path) -> io::Result<()> {
        if self.inherits {
            return make_as_above(root, path);
        }
        let mut builder = cap_std::fs::DirBuilder::new();
        builder.recursive(true);
        if self.is_private {
            cap_std::fs::DirBuilderExt::mode(&mut builder, PRIVATE);
        }
        root.create_dir_with(path, &builder)
    }

    /// The folder that holds `path`, below the handle.
    fn parent(&self, path: &RootPath, make: bool) -> io::Result<OwnedFd> {
        let path = path.to_path();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let root = self.folder()?;
        let Some(parent) = parent else { return Ok(root.try_clone()?.into_std_file().into()) };
        let opened = match root.open_dir(parent) {
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
                self.make_folder(root, parent)?;
                root.open_dir(parent)
            }
            other => other,
        };
        Ok(opened?.into_std_file().into())
    }

    /// Compares what is at `path` with `row`, byte for byte.
    pub(crate) fn compare(&self, path: &RootPath, row: &FileRow) -> io::Result<Found> {
        if self.folder.get().is_none() && !self.path.exists() {
            return Ok(Found::Nothing);
        }
        let parent = match self.parent(path, false) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            // A file where a folder should be, or a link that leads outside.
            Err(_) => return Ok(Found::Different),
        };
        let name = name_of(path);
        let stat = match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(error) => return Err(error.into()),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || u64::try_from(stat.st_size) != Ok(row.size_bytes) {
            return Ok(Found::Different);
        }
        let same = LiveFile::open(&parent, &name).and_then(|file| file.hash(|| true)).is_ok_and(|content| content.digests == row.digests);
        if !same {
            return Ok(Found::Different);
        }
        let times = crate::library::walk::file_times(&stat);
        Ok(if times.mtime_ns == row.mtime_ns && times.mode == row.mode & 0o777 { Found::Same } else { Found::SameBytes })
    }

    /// Sets time and permissions of a file whose bytes are right.
    pub(crate) fn touch(&self, path: &RootPath, row: &FileRow) -> io::Result<()> {
        let parent = self.parent(path, false)?;
        let file = rustix::fs::openat(&parent, name_of(path), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        set_times_and_mode(&file.into(), row)
    }

    /// Begins a file under a temporary name in its folder.
    pub(crate) fn begin(&self, path: &RootPath) -> io::Result<NewFile> {
        let parent = self.parent(path, true)?;
        let name = name_of(path);
        let digest = Sha256::of(name.as_os_str().as_encoded_bytes()).to_string();
        let temporary = PathBuf::from(format!(".immich-backup.{}.part", digest.get(..16).unwrap_or(&digest)));
        // What a restore that died left there goes; a link that was put there is not followed.
        match rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let flush = match self.barrier.get() {
            Some(barrier) => !barrier,
            None => !*self.barrier.get_or_init(|| syncfs_is_enough(&parent).unwrap_or(false)),
        };
        let stat = rustix::fs::fstat(&file)?;
        Ok(NewFile { file: Some(File::from(file)), parent, temporary: Some(temporary), name, flush, identity: (stat.st_dev, stat.st_ino) })
    }

    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        // What is not made yet will lie where the nearest folder above it is.
        let stat = match self.folder.get() {
            Some(folder) => rustix::fs::fstatvfs(folder)?,
            None => rustix::fs::statvfs(self.path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new(".")))?,
        };
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Makes the marker at `path` if it is missing: a file with the time in ms since 1970, as Immich writes it. Whether it was.
    pub(crate) fn make_marker(&self, path: &RootPath) -> io::Result<bool> {
        let root = self.folder()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis());
        let (folder, _) = path.split();
        if !folder.is_empty() {
            self.make_folder(root, Path::new(folder))?;
        }
        let missing = !root.exists(path.as_str());
        if missing {
            root.write(path.as_str(), now.to_string())?;
        }
        Ok(missing)
    }

    /// Makes those `folders` of the folder `within` (canonical text below this one) that are missing.
    pub(crate) fn make_folders(&self, within: &Path, folders: &[&str]) -> io::Result<()> {
        let root = self.folder()?;
        folders.iter().try_for_each(|folder| self.make_folder(root, &within.join(folder)))
    }

    /// Locks the folder for this restore; `None` where another one has it. Held until what is returned is dropped.
    pub(crate) fn lock(&self) -> io::Result<Option<OwnedFd>> {
        let folder = rustix::fs::openat(self.folder()?, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => Ok(Some(folder)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns once all bytes and names survive a loss of power, where the file system has a barrier to trust.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self.folder.get() {
            // The handle may be one that only names the folder (O_PATH), which cannot be flushed.
            Some(folder) => Ok(rustix::fs::syncfs(rustix::fs::openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)?),
            None => Ok(()),
        }
    }
}

/// Makes the folders of `path` that are missing, each for the owner of the one above it.
fn make_as_above(root: &Dir, path: &Path) -> io::Result<()> {
    let mut above = root.try_clone()?;
    for name in path.components() {
        let made = above.create_dir(name);
        let folder = match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => above.open_dir(name)?,
        };
        if made.is_ok()
            && let Err(error) = own_as(&folder, &rustix::fs::fstat(&above)?)
        {
            // Nobody else may be able to use it: it goes again.
            above.remove_dir(name)?;
            return Err(error);
        }
        above = folder;
    }
    Ok(())
}

/// Gives it to the owner of another one.
fn own_as(file: impl std::os::fd::AsFd, other: &Stat) -> io::Result<()> {
    let stat = rustix::fs::fstat(&file)?;
    let wanted = (other.st_uid, other.st_gid);
    if (stat.st_uid, stat.st_gid) == wanted {
        return Ok(());
    }
    // A handle that only names a folder cannot be changed by.
    let reopened = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        Some(rustix::fs::openat(&file, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    } else {
        None
    };
    let (uid, gid) = (Some(rustix::fs::Uid::from_raw(wanted.0)), Some(rustix::fs::Gid::from_raw(wanted.1)));
    let changed = match &reopened {
        Some(folder) => rustix::fs::fchown(folder, uid, gid),
        None => rustix::fs::fchown(&file, uid, gid),
    };
    changed.map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("it cannot be given to its owner, user {} group {}: run this as root", wanted.0, wanted.1))
    })
}

fn name_of(path: &RootPath) -> PathBuf {
    path.to_path().file_name().map(PathBuf::from).unwrap_or_default()
}

fn set_times_and_mode(file: &File, row: &FileRow) -> io::Result<()> {
    let time = Timespec { tv_sec: row.mtime_ns.div_euclid(1_000_000_000), tv_nsec: row.mtime_ns.rem_euclid(1_000_000_000) };
    // Never set-user-id: the log is not to be trusted that far.
    rustix::fs::fchmod(file, Mode::from_raw_mode(row.mode & 0o777))?;
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}

/// A file under its temporary name; gone when dropped without being published.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: Option<File>,
    parent: OwnedFd,
    temporary: Option<PathBuf>,
    name: PathBuf,
    /// There is no barrier to trust: it is flushed by itself.
    flush: bool,
    /// Device and inode: what bears the temporary name has to be this file still.
    identity: (u64, u64),
}

impl NewFile {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    /// Ends writing: sets time and permissions, and flushes it where no barrier will.
    pub(crate) fn complete(&mut self, row: &FileRow) -> io::Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        set_times_and_mode(&file, row)?;
        if self.flush { file.sync_all() } else { Ok(()) }
    }

    /// As [`Self::complete`], and on disk by itself.
    pub(crate) fn complete_durably(&mut self, row: &FileRow) -> io::Result<()> {
        self.flush = true;
        self.complete(row)
    }

    /// Makes it the file of another owner, where it is not: of `live`, else of the folder's. Before its permissions are set.
    pub(crate) fn give_to_owner(&mut self, live: Option<&Stat>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match live {
            Some(live) => own_as(file, live),
            None => own_as(file, &rustix::fs::fstat(&self.parent)?),
        }
    }

    /// Changes places with what has the name now, and removes that, if it is what `is_planned` says; else all is as before, and `false`. The bytes have to be
    /// on disk by now, and those that go have to be kept elsewhere.
    pub(crate) fn exchange(mut self, is_planned: impl Fn(&Stat) -> bool) -> io::Result<bool> {
        let Some(temporary) = self.temporary.clone() else { return Ok(false) };
        let looked_at = |name: &Path| rustix::fs::statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = looked_at(&temporary)?;
        if (stat.st_dev, stat.st_ino) != self.identity {
            return Err(io::Error::other("another program writes to the same place"));
        }
        if !is_planned(&looked_at(&self.name)?) {
            return Ok(false);
        }
        let exchange = || rustix::fs::renameat_with(&self.parent, &temporary, &self.parent, &self.name, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => {
                // From here on it is the live file that bears the temporary name: nothing removes that but this, once it is known to be the planned one.
                self.temporary = None;
                let in_place = looked_at(&self.name).map(|stat| (stat.st_dev, stat.st_ino) == self.identity);
                let planned = looked_at(&temporary).map(|stat| is_planned(&stat));
                if !matches!((&in_place, &planned), (Ok(true), Ok(true))) {
                    // Whoever wrote to the file in this very moment is seen now, and has it back.
                    exchange().map_err(|error| self.set_aside(&temporary, error.into()))?;
                    if !matches!(in_place, Ok(true)) {
                        return Err(self.set_aside(&temporary, io::Error::other("another program writes to the same place")));
                    }
                    self.temporary = Some(temporary.clone());
                    return Ok(false);
                }
                rustix::fs::unlinkat(&self.parent, &temporary, AtFlags::empty())?;
            }
            // A file system that cannot: what was looked at a moment ago is replaced.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::renameat(&self.parent, &temporary, &self.parent, &self.name)?;
                self.temporary = None;
            }
            Err(error) => return Err(error.into()),
        }
        self.sync_folder()?;
        Ok(true)
    }

    /// Somebody's file bears the temporary name: it gets one that nobody takes for a leftover, and the error says which.
    fn set_aside(&self, temporary: &Path, error: io::Error) -> io::Error {
        let kept = temporary.with_extension("kept");
        let moved = rustix::fs::renameat_with(&self.parent, temporary, &self.parent, &kept, RenameFlags::NOREPLACE);
        let name = if moved.is_ok() { &kept } else { temporary };
        io::Error::new(error.kind(), format!("{error}; a file that was there is kept beside it, as `{}`", name.display()))
    }

    /// Returns once the folder's names survive a loss of power.
    fn sync_folder(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(rustix::fs::openat(&self.parent, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)?)
    }

    /// As [`Self::publish`] of a name that is free, and on disk by itself.
    pub(crate) fn publish_durably(self) -> io::Result<()> {
        let folder = self.parent.try_clone()?;
        self.publish(false)?;
        Ok(rustix::fs::fsync(rustix::fs::openat(&folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)?)
    }

    /// Gives the file its name. Its bytes have to be on disk by now.
    pub(crate) fn publish(mut self, overwrite: bool) -> io::Result<()> {
        let Some(temporary) = self.temporary.clone() else { return Ok(()) };
        let stat = rustix::fs::statat(&self.parent, &temporary, AtFlags::SYMLINK_NOFOLLOW)?;
        if (stat.st_dev, stat.st_ino) != self.identity {
            return Err(io::Error::other("another restore writes to the same place"));
        }
        if overwrite {
            rustix::fs::renameat(&self.parent, &temporary, &self.parent, &self.name)?;
        } else {
            self.rename_new(&temporary)?;
        }
        self.temporary = None;
        crash_point!("restore: a file named");
        Ok(())
    }

    fn rename_new(&self, temporary: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.parent, temporary, &self.parent, &self.name, RenameFlags::NOREPLACE) {
            // A file system that cannot: nobody else is writing here.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(rustix::fs::renameat(&self.parent, temporary, &self.parent, &self.name)?),
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) => Err(error.into()),
            },
            other => Ok(other?),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // What stays under its temporary name is removed by the next restore.
            rustix::fs::unlinkat(&self.parent, &temporary, AtFlags::empty()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::os::unix::fs::MetadataExt as _;

    fn path(text: &str) -> RootPath {
        RootPath::parse(text).unwrap()
    }

    #[test]
    fn what_is_brought_back_belongs_to_whom_the_nearest_folder_belongs() {
        let base = tempfile::tempdir().unwrap();
        // Only root can give files away; everybody else has one owner to test with.
        let (uid, gid) =
            if rustix::process::geteuid().is_root() { (4_711, 4_712) } else { (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()) };
        std::fs::create_dir(base.path().join("upload")).unwrap();
        std::os::unix::fs::chown(base.path().join("upload"), Some(uid), Some(gid)).unwrap();
        let target = Target::later(base.path().to_owned()).inheriting();
        let mut file = target.begin(&path("upload/u1/ab/photo.jpg")).unwrap();
        file.write(b"photo").unwrap();
        file.give_to_owner(None).unwrap();
        file.publish_durably().unwrap();
        for made in ["upload/u1", "upload/u1/ab", "upload/u1/ab/photo.jpg"] {
            let found = base.path().join(made).metadata().unwrap();
            assert_eq!((found.uid(), found.gid()), (uid, gid), "{made}");
        }
        assert_eq!(std::fs::read(base.path().join("upload/u1/ab/photo.jpg")).unwrap(), b"photo");
    }

    #[test]
    fn a_file_that_somebody_replaces_at_this_moment_is_never_removed() {
        let base = tempfile::tempdir().unwrap();
        let live = base.path().join("photo.jpg");
        let begin = || {
            std::fs::write(&live, b"newer").unwrap();
            let target = Target::later(base.path().to_owned());
            let mut file = target.begin(&path("photo.jpg")).unwrap();
            file.write(b"from the repository").unwrap();
            file
        };
        let others = || std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != live).collect::<Vec<_>>();
        // Seen only after they have changed places: it has its name back.
        let looks = Cell::new(0);
        let second_differs = |_: &Stat| looks.replace(looks.get() + 1) == 0;
        assert!(!begin().exchange(second_differs).unwrap());
        assert_eq!((looks.get(), std::fs::read(&live).unwrap(), others().len()), (2, b"newer".to_vec(), 0));
        // And where it cannot have it back, it is kept, and said where.
        looks.set(0);
        let gone_by_then = |_: &Stat| {
            let is_first = looks.replace(looks.get() + 1) == 0;
            if !is_first {
                std::fs::remove_file(&live).unwrap();
            }
            is_first
        };
        let error = begin().exchange(gone_by_then).unwrap_err();
        let kept = others();
        assert_eq!(kept.iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>(), [b"newer"]);
        assert!(error.to_string().contains(kept[0].file_name().unwrap().to_str().unwrap()), "{error}");
        // Nor by the next try.
        begin().exchange(|_| true).unwrap();
        assert_eq!((std::fs::read(&live).unwrap(), others()), (b"from the repository".to_vec(), kept));
    }
}
