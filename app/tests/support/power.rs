//! Loss of power, without a machine to pull the plug of: what the program asked of the kernel, recorded by `strace`, and a model of what of it a disk may have
//! at any moment.
//!
//! What was flushed is there. Of all that was not, any part may be: each write to a file, whole, torn or not at all; each name, made, changed or removed.

use super::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A disk writes sectors; what was being written when the power went may be there up to one of these.
const SECTOR: usize = 512;

/// The calls that change files and names, or make them last.
const CALLS: &str = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,link,linkat,rename,renameat,renameat2,\
                     unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync_file_range,syncfs,sync,mmap,copy_file_range,sendfile,splice,dup,dup2,dup3,fcntl,\
                     symlink,symlinkat,close,fstatfs";

/// What a file is known by, whatever it is called.
type Inode = usize;

/// One thing that the program did.
#[derive(Debug, Clone)]
enum Deed {
    /// Bytes of a file.
    Write { file: Inode, at: usize, bytes: Vec<u8> },
    /// A file's new size.
    Size { file: Inode, size: usize },
    /// A name in a folder: of a file, of a folder, or of nothing any more. A rename is two of these, which happen together.
    Names(Vec<(PathBuf, Option<Entry>)>),
    /// A file, or a folder's names, are on disk as they were when this began.
    Flush { what: Flushed, begun: usize },
    /// The program said how it ended.
    Summary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Folder,
    File(Inode),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Flushed {
    File(Inode),
    Folder(PathBuf),
    /// All below, and the name of this folder itself: it is a file system of its own.
    Everything(PathBuf),
}

/// What a run did, from the state before it on.
pub struct Recording {
    /// The folders that are looked at: each is a disk of its own.
    disks: Vec<PathBuf>,
    /// Contents of files, as they lay there before.
    before: Vec<Vec<u8>>,
    /// Names before.
    names: BTreeMap<PathBuf, Entry>,
    deeds: Vec<Deed>,
}

/// Whether programs can be traced here.
pub fn can_trace() -> bool {
    Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

/// `command`, run under `strace`, which writes to `trace`. Where no file system is known, no `syncfs` is trusted: each file is flushed by itself.
pub fn traced(command: &Command, trace: &Path, knows_file_systems: bool) -> Command {
    let mut all = super::clean(Command::new("strace"));
    all.args(["-f", "-qq", "-y", "-xx", "-s", "64000000", "-e"]).arg(format!("trace={CALLS}")).arg("-o").arg(trace);
    if !knows_file_systems {
        all.args(["-e", "inject=fstatfs:error=ENOSYS"]);
    }
    all.arg("--");
    all.arg(command.get_program()).args(command.get_args());
    all.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    all
}

impl Recording {
    /// Looks at what is on these disks before a run.
    pub fn before(disks: &[&Path]) -> Self {
        let mut recording =
            Self { disks: disks.iter().map(|disk| (*disk).to_owned()).collect(), before: Vec::new(), names: BTreeMap::new(), deeds: Vec::new() };
        let mut folders: Vec<_> = recording.disks.iter().filter(|disk| disk.exists()).cloned().collect();
        while let Some(folder) = folders.pop() {
            recording.names.insert(folder.clone(), Entry::Folder);
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    recording.before.push(fs::read(&path).unwrap());
                    recording.names.insert(path, Entry::File(recording.before.len() - 1));
                }
            }
        }
        recording
    }

    /// Adds what a run did.
    pub fn read(&mut self, trace: &Path) {
        let text = fs::read_to_string(trace).unwrap();
        Reader { recording: self, names: BTreeMap::new(), sizes: Vec::new(), open: BTreeMap::new(), begun: BTreeMap::new() }.read(&text);
    }

    /// How many moments there are.
    pub fn len(&self) -> usize {
        self.deeds.len()
    }

    /// How many times something was flushed.
    pub fn flushes(&self) -> usize {
        self.deeds.iter().filter(|deed| matches!(deed, Deed::Flush { .. })).count()
    }

    /// Whether the program relied on one call for all files of a file system.
    pub fn has_barriers(&self) -> bool {
        self.deeds.iter().any(|deed| matches!(deed, Deed::Flush { what: Flushed::Everything(_), .. }))
    }

    /// Whether the program had said how it ended before this moment.
    pub fn had_ended(&self, moment: usize) -> bool {
        self.deeds[..moment].iter().any(|deed| matches!(deed, Deed::Summary))
    }

    fn disk_of(&self, path: &Path) -> Option<&PathBuf> {
        self.disks.iter().find(|disk| path.starts_with(disk))
    }

    /// What the disks may hold where the power goes at `moment`, written to the folders `to`, one for each disk.
    pub fn crash(&self, moment: usize, random: &mut Random, to: &[&Path]) {
        let deeds = &self.deeds[..moment];
        let mode = Mode { files_bring_their_names: random.below(2) == 0, in_order: random.below(2) == 0, lost: *random.pick(&[1, 2, 4, 50]) };
        let names = self.names_after(deeds, mode, random);
        let mut contents: BTreeMap<Inode, Vec<u8>> = BTreeMap::new();
        for entry in names.values() {
            if let Entry::File(file) = entry {
                contents.entry(*file).or_insert_with(|| self.content_after(deeds, *file, mode, random));
            }
        }
        for (disk, target) in self.disks.iter().zip(to) {
            for (path, entry) in names.range(disk.clone()..).take_while(|(path, _)| path.starts_with(disk)) {
                let path = target.join(path.strip_prefix(disk).unwrap());
                // In order: a folder comes before what is in it. What lies in a folder that is lost, is lost.
                match entry {
                    Entry::Folder if path == **target || path.parent().is_some_and(Path::exists) => fs::create_dir(&path).unwrap(),
                    Entry::File(file) if path.parent().is_some_and(Path::exists) => fs::write(&path, &contents[file]).unwrap(),
                    _ => {}
                }
            }
        }
    }

    /// The last deed before which all of it was flushed that concerns this.
    fn flushed_up_to(deeds: &[Deed], concerns: impl Fn(&Flushed) -> bool) -> usize {
        let of = |deed: &Deed| match deed {
            Deed::Flush { what, begun } if concerns(what) => Some(*begun),
            _ => None,
        };
        deeds.iter().filter_map(of).max().unwrap_or(0)
    }

    fn names_after(&self, deeds: &[Deed], mode: Mode, random: &mut Random) -> BTreeMap<PathBuf, Entry> {
        let mut names = self.names.clone();
        // A journal has its entries in order: where one is missing, those after it are.
        let mut missing: BTreeSet<PathBuf> = BTreeSet::new();
        for (number, deed) in deeds.iter().enumerate() {
            let Deed::Names(changes) = deed else { continue };
            let is_flushed = |path: &Path, entry: Option<Entry>| {
                let folder = path.parent().unwrap();
                let disk = self.disk_of(path).unwrap();
                let concerns = |flushed: &Flushed| match flushed {
                    Flushed::Folder(flushed) => flushed == folder,
                    Flushed::Everything(below) => below == disk,
                    Flushed::File(file) => mode.files_bring_their_names && entry == Some(Entry::File(*file)),
                };
                number < Self::flushed_up_to(deeds, concerns)
            };
            let certain = changes.iter().all(|(path, entry)| is_flushed(path, *entry));
            let disk = self.disk_of(&changes[0].0).unwrap().clone();
            let lucky = !(mode.in_order && missing.contains(&disk)) && random.below(mode.lost) != 0;
            if !certain && !lucky {
                missing.insert(disk);
                continue;
            }
            for (path, entry) in changes {
                match entry {
                    Some(entry) => drop(names.insert(path.clone(), *entry)),
                    None => drop(names.remove(path)),
                }
            }
        }
        names
    }

    fn content_after(&self, deeds: &[Deed], file: Inode, mode: Mode, random: &mut Random) -> Vec<u8> {
        let disk = self.disk_of_file(deeds, file);
        let certain = Self::flushed_up_to(deeds, |flushed| match flushed {
            Flushed::File(flushed) => *flushed == file,
            Flushed::Everything(below) => disk.as_ref() == Some(below),
            Flushed::Folder(_) => false,
        });
        let mut content = self.before.get(file).cloned().unwrap_or_default();
        for (number, deed) in deeds.iter().enumerate() {
            let is_there = number < certain || random.below(mode.lost) != 0;
            match deed {
                Deed::Write { file: of, at, bytes } if *of == file && is_there => {
                    let torn = number >= certain && random.below(3) == 0;
                    // Up to the end of one of the sectors that it touches.
                    let end = if torn { random.below(bytes.len() / SECTOR + 1) * SECTOR } else { bytes.len() };
                    if content.len() < at + end {
                        content.resize(at + end, 0);
                    }
                    content[*at..at + end].copy_from_slice(&bytes[..end]);
                }
                Deed::Size { file: of, size } if *of == file && is_there => content.resize(*size, 0),
                _ => {}
            }
        }
        content
    }

    fn disk_of_file(&self, deeds: &[Deed], file: Inode) -> Option<PathBuf> {
        let named = deeds.iter().filter_map(|deed| if let Deed::Names(changes) = deed { Some(changes) } else { None }).flatten();
        let named = named.filter_map(|(path, entry)| Some((path, (*entry)?)));
        let path = self.names.iter().map(|(path, entry)| (path, *entry)).chain(named).find(|(_, entry)| *entry == Entry::File(file))?.0;
        self.disk_of(path).cloned()
    }
}

/// How a disk loses things.
#[derive(Debug, Clone, Copy)]
struct Mode {
    /// Flushing a new file makes its name last as well, as ext4 does and POSIX does not say.
    files_bring_their_names: bool,
    /// Names are lost from one moment on, as where there is a journal; else any of them.
    in_order: bool,
    /// One in so many of what may be lost, is.
    lost: usize,
}

/// Reads what `strace` wrote.
struct Reader<'a> {
    recording: &'a mut Recording,
    /// Names as the program sees them.
    names: BTreeMap<PathBuf, Entry>,
    /// Sizes as the program sees them.
    sizes: Vec<usize>,
    /// Files that are open: which, and where the next write goes; `None` where it is always to the end.
    open: BTreeMap<u32, (Inode, Option<usize>)>,
    /// Calls that were begun and had not ended when another one was: by thread.
    begun: BTreeMap<u32, (String, usize)>,
}

impl Reader<'_> {
    fn read(mut self, text: &str) {
        self.names = self.recording.names.clone();
        self.sizes = self.recording.before.iter().map(Vec::len).collect();
        for line in text.lines() {
            let (thread, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            let (thread, rest) = (thread.parse().unwrap_or_else(|_| panic!("{line}")), rest.trim_start());
            let now = self.recording.deeds.len();
            if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
                // Its number may be another file's before the call is over.
                if let Some(closed) = begun.strip_prefix("close(") {
                    self.open.remove(&descriptor(closed));
                    continue;
                }
                self.begun.insert(thread, (begun.to_owned(), now));
            } else if let Some((_, end)) = rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
                if rest.starts_with("<... close resumed>") {
                    continue;
                }
                let (begun, at) = self.begun.remove(&thread).unwrap_or_else(|| panic!("{line}"));
                self.call(&format!("{begun}{end}"), at);
            } else if !rest.starts_with("+++") && !rest.starts_with("---") {
                self.call(rest, now);
            }
        }
    }

    /// Where a path argument leads, if that is on one of the disks.
    fn path(&self, folder: &str, text: &str) -> Option<PathBuf> {
        let path = Path::new(&annotation(folder).unwrap_or_default()).join(quoted(text));
        self.recording.disk_of(&path)?;
        Some(path)
    }

    fn names(&mut self, changes: Vec<(PathBuf, Option<Entry>)>) {
        for (path, entry) in &changes {
            match entry {
                Some(entry) => drop(self.names.insert(path.clone(), *entry)),
                None => drop(self.names.remove(path)),
            }
        }
        self.recording.deeds.push(Deed::Names(changes));
    }

    fn write(&mut self, descriptor: u32, at: Option<usize>, bytes: Vec<u8>) {
        let Some((file, position)) = self.open.get_mut(&descriptor) else { return };
        let file = *file;
        let start = at.or(*position).unwrap_or(self.sizes[file]);
        if at.is_none()
            && let Some(position) = position
        {
            *position = start + bytes.len();
        }
        self.sizes[file] = self.sizes[file].max(start + bytes.len());
        self.recording.deeds.push(Deed::Write { file, at: start, bytes });
    }

    fn size(&mut self, file: Inode, size: usize) {
        self.sizes[file] = size;
        self.recording.deeds.push(Deed::Size { file, size });
    }

    /// One call, with what it returned; `begun` is the number of deeds that were done when it began.
    fn call(&mut self, text: &str, begun: usize) {
        let Some((call, rest)) = text.split_once('(') else { return };
        let Some((arguments, returned)) = rest.rsplit_once(" = ") else { return };
        let returned = returned.trim();
        if returned.starts_with('-') || returned.starts_with('?') {
            return;
        }
        let arguments: Vec<&str> = arguments.trim_end().trim_end_matches(')').split(", ").collect();
        let argument = |number: usize| arguments.get(number).copied().unwrap_or_default();
        let here = "AT_FDCWD";
        match call {
            "openat" => self.opened(argument(0), argument(1), argument(2), returned),
            "open" | "creat" => self.opened(here, argument(0), if call == "creat" { "O_CREAT|O_TRUNC|O_WRONLY" } else { argument(1) }, returned),
            "write" if argument(0).starts_with("1<") && String::from_utf8_lossy(&bytes_of(argument(1))).contains("\"type\":\"summary\"") => {
                self.recording.deeds.push(Deed::Summary);
            }
            "write" | "pwrite64" => {
                let mut bytes = bytes_of(argument(1));
                bytes.truncate(returned.parse().unwrap());
                let at = (call == "pwrite64").then(|| argument(3).parse().unwrap());
                self.write(descriptor(argument(0)), at, bytes);
            }
            "lseek" => {
                if let Some((_, Some(position))) = self.open.get_mut(&descriptor(argument(0))) {
                    *position = returned.parse().unwrap();
                }
            }
            "ftruncate" => {
                if let Some((file, _)) = self.open.get(&descriptor(argument(0))).copied() {
                    self.size(file, argument(1).parse().unwrap());
                }
            }
            "link" | "linkat" => {
                let (from, to) = if call == "link" { ((here, 0), (here, 1)) } else { ((argument(0), 1), (argument(2), 3)) };
                if let (Some(from), Some(to)) = (self.path(from.0, argument(from.1)), self.path(to.0, argument(to.1))) {
                    let entry = self.names[&from];
                    self.names(vec![(to, Some(entry))]);
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let (from, to) = if call == "rename" { ((here, 0), (here, 1)) } else { ((argument(0), 1), (argument(2), 3)) };
                if let (Some(from), Some(to)) = (self.path(from.0, argument(from.1)), self.path(to.0, argument(to.1))) {
                    let entry = self.names[&from];
                    assert!(entry != Entry::Folder, "a folder is renamed: {} (the model has no such thing)", from.display());
                    self.names(vec![(to, Some(entry)), (from, None)]);
                }
            }
            "unlink" | "rmdir" => self.unlinked(here, argument(0)),
            "unlinkat" => self.unlinked(argument(0), argument(1)),
            "mkdir" => self.made(here, argument(0)),
            "mkdirat" => self.made(argument(0), argument(1)),
            "fsync" | "fdatasync" => {
                let path = PathBuf::from(annotation(argument(0)).unwrap_or_default());
                let what = match (self.open.get(&descriptor(argument(0))), self.names.get(&path)) {
                    (Some((file, _)), _) => Flushed::File(*file),
                    (None, Some(Entry::Folder)) => Flushed::Folder(path),
                    (None, Some(Entry::File(_))) => panic!("{} is flushed, and nobody opened it", path.display()),
                    // A folder above the disks holds their names.
                    (None, None) if self.recording.disks.iter().any(|disk| disk.parent() == Some(&path)) => Flushed::Folder(path),
                    _ => return,
                };
                self.recording.deeds.push(Deed::Flush { what, begun });
            }
            "syncfs" => {
                if let Some(disk) = self.recording.disk_of(Path::new(&annotation(argument(0)).unwrap_or_default())).cloned() {
                    self.recording.deeds.push(Deed::Flush { what: Flushed::Everything(disk), begun });
                }
            }
            "close" => drop(self.open.remove(&descriptor(argument(0)))),
            "fcntl" if argument(1).starts_with("F_DUPFD") => self.duplicated(argument(0), returned),
            "dup" | "dup2" | "dup3" => self.duplicated(argument(0), returned),
            // SQLite's shared memory is made anew after a crash, and nothing else may be written by way of memory.
            "mmap" if argument(3).contains("MAP_SHARED") && argument(2).contains("PROT_WRITE") => self.refuse_but_shm(call, argument(4)),
            "writev" | "pwritev" | "pwritev2" | "fallocate" | "copy_file_range" | "sendfile" | "splice" | "sync_file_range" => {
                self.refuse_but_shm(call, argument(0))
            }
            _ => {}
        }
    }

    fn refuse_but_shm(&self, call: &str, argument: &str) {
        let path = PathBuf::from(annotation(argument).unwrap_or_default());
        let is_shm = path.to_string_lossy().ends_with("-shm");
        assert!(is_shm || self.recording.disk_of(&path).is_none(), "{call} on {}: the model has no such thing", path.display());
    }

    fn opened(&mut self, folder: &str, path: &str, flags: &str, returned: &str) {
        let descriptor = descriptor(returned);
        self.open.remove(&descriptor);
        let Some(path) = self.path(folder, path) else { return };
        let file = match self.names.get(&path) {
            Some(Entry::File(file)) => *file,
            Some(Entry::Folder) => return,
            None => {
                assert!(flags.contains("O_CREAT"), "{} is opened and was never made", path.display());
                self.sizes.push(0);
                let file = self.sizes.len() - 1;
                self.names(vec![(path, Some(Entry::File(file)))]);
                file
            }
        };
        self.open.insert(descriptor, (file, (!flags.contains("O_APPEND")).then_some(0)));
        if flags.contains("O_TRUNC") && self.sizes[file] > 0 {
            self.size(file, 0);
        }
    }

    fn unlinked(&mut self, folder: &str, path: &str) {
        if let Some(path) = self.path(folder, path) {
            self.names(vec![(path, None)]);
        }
    }

    fn made(&mut self, folder: &str, path: &str) {
        if let Some(path) = self.path(folder, path) {
            self.names(vec![(path, Some(Entry::Folder))]);
        }
    }

    fn duplicated(&mut self, from: &str, returned: &str) {
        // Two descriptors of one position: no program here writes through both.
        match self.open.get(&descriptor(from)).copied() {
            Some(open) => drop(self.open.insert(descriptor(returned), open)),
            None => drop(self.open.remove(&descriptor(returned))),
        }
    }
}

/// The number of `12<\x2f…>`.
fn descriptor(text: &str) -> u32 {
    text.split('<').next().unwrap().trim().parse().unwrap_or(u32::MAX)
}

/// The path of `12<\x2f…>`.
fn annotation(text: &str) -> Option<String> {
    let inner = text.split_once('<')?.1.rsplit_once('>')?.0;
    Some(String::from_utf8(unescaped(inner)).unwrap())
}

fn quoted(text: &str) -> String {
    String::from_utf8(bytes_of(text)).unwrap()
}

fn bytes_of(text: &str) -> Vec<u8> {
    assert!(text.ends_with('"'), "the trace was cut: {}", text.chars().rev().take(20).collect::<String>());
    unescaped(text.trim_matches('"'))
}

/// Bytes written as `\x2f`.
fn unescaped(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|pair| u8::from_str_radix(&pair[..2], 16).unwrap()).collect()
}
