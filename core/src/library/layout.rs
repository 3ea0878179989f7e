//! Facts about Immich's media location, read off its source at 1.113 to 3.1. No other module knows a folder's name.

use crate::model::{Class, FilePath, Root, RootPath};

/// The folders of the media location; Immich refuses to start where one lacks its [`MARKER`] (since 1.115).
pub const FOLDERS: [&str; 6] = ["backups", "encoded-video", "library", "profile", "thumbs", "upload"];

/// The file that Immich rewrites in each of [`FOLDERS`] when it starts; its content is a time in ms since 1970.
pub const MARKER: &str = ".immich";

/// Holds Immich's own dumps of the database.
const OWN_DUMPS: &str = "backups";

/// Whether this is, or lies in, what a file system keeps for itself at its top: `lost+found` of ext4, which only root may read, and which is in the way wherever a
/// volume of its own is a library. (<https://man7.org/linux/man-pages/man8/mklost+found.8.html>)
#[must_use]
pub fn is_of_file_system(path: &RootPath) -> bool {
    path.as_str().split('/').next() == Some("lost+found")
}

/// Names that only ever belong to a file being written or held open after its removal: ours while restoring, and those
/// of NFS and FUSE.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    (name.starts_with(".immich-backup.") && name.ends_with(".part")) || name.starts_with(".nfs") || name.starts_with(".fuse_hidden")
}

/// Whether a file is a dump that Immich itself wrote (or the marker beside them).
#[must_use]
pub fn is_own_dump(file: &FilePath) -> bool {
    file.root == Root::Library && is_below(file.path.as_str(), OWN_DUMPS)
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a file could be made again, by Immich or from the dump, by its place alone.
///
/// `encoded-video/…-MP.mp4` is the video of a motion photo: an original, though it lies among derived files.
#[must_use]
pub fn class_of(file: &FilePath) -> Class {
    let path = file.path.as_str();
    match file.root {
        Root::Library => {}
        Root::External(_) | Root::Config => return Class::Original,
        // The dump brings all of it back.
        Root::Postgres => return Class::Derived,
    }
    if let Some((folder, MARKER)) = path.rsplit_once('/')
        && FOLDERS.contains(&folder)
    {
        return Class::Marker;
    }
    let motion_video = path.ends_with("-MP.mp4");
    if is_below(path, "thumbs") || (is_below(path, "encoded-video") && !motion_video) { Class::Derived } else { Class::Original }
}

/// Whether Immich keeps a checksum of such a file's content, and never rewrites it in place.
///
/// Sidecars are rewritten, profile images have no checksum, external files have one of their path only.
#[must_use]
pub fn is_checksummed_original(file: &FilePath) -> bool {
    let path = file.path.as_str();
    let sidecar = path.len() >= 4 && path.get(path.len() - 4..).is_some_and(|end| end.eq_ignore_ascii_case(".xmp"));
    class_of(file) == Class::Original
        && file.root == Root::Library
        && !sidecar
        && ["upload", "library", "encoded-video"].iter().any(|folder| is_below(path, folder))
}

/// The markers of the media location, as paths below it.
pub fn markers() -> impl Iterator<Item = String> {
    FOLDERS.iter().map(|folder| format!("{folder}/{MARKER}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RootPath;

    fn file(path: &str) -> FilePath {
        FilePath::library(RootPath::parse(path).unwrap())
    }

    #[test]
    fn the_motion_video_of_a_photo_is_an_original() {
        assert_eq!(class_of(&file("encoded-video/u/aa/bb/x-MP.mp4")), Class::Original);
        assert_eq!(class_of(&file("encoded-video/u/aa/bb/x.mp4")), Class::Derived);
        assert_eq!(class_of(&file("thumbs/u/aa/bb/x_preview.jpeg")), Class::Derived);
        assert_eq!(class_of(&file("thumbs/.immich")), Class::Marker);
        assert_eq!(class_of(&file("thumbs/u/.immich")), Class::Derived);
        assert_eq!(class_of(&file("thumbsup/x.jpg")), Class::Original);
        assert_eq!(class_of(&file("profile/u/x.jpg")), Class::Original);
        let external = FilePath { root: Root::External("nas".parse().unwrap()), path: RootPath::parse("thumbs/x.jpg").unwrap() };
        assert_eq!(class_of(&external), Class::Original);
    }

    #[test]
    fn what_immich_rewrites_in_place_is_not_held_to_a_checksum() {
        assert!(is_checksummed_original(&file("upload/u/aa/bb/x.jpg")));
        assert!(is_checksummed_original(&file("library/admin/2024/x.jpg")));
        for path in ["library/admin/2024/x.jpg.XMP", "profile/u/x.jpg", "thumbs/u/x.webp", "upload/.immich", "encoded-video/u/x.mp4"] {
            assert!(!is_checksummed_original(&file(path)), "{path}");
        }
    }
}
