//! Which files an Immich media location holds, and where; and what they are to people.

use std::fmt::Display;

use anyhow::Context;
use jiff::civil::{DateTime, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use uuid::{Builder, Uuid};

use crate::database::{Asset, Database, Kind, on_server};
use crate::files::Folder;
use crate::movie;
use crate::photo::{self, Shot};
use crate::scene::{Scene, noise, noise_below};

const FOLDERS: [&str; 6] = ["upload", "thumbs", "encoded-video", "library", "profile", "backups"];

/// Has the storage label `admin` and the storage template on.
const ADMIN: Uuid = Uuid::from_u128(0x5d1b7c3e_94a2_4f68_8c0d_2e7f61a9b354);
/// Has neither: her files stay where they were uploaded.
const ANNA: Uuid = Uuid::from_u128(0xc27e40f9_1d85_4b3a_a6f2_90d35be81c67);

/// Names that people give, each one a trap for somebody's backup. Every third photo has one while they last.
const ODD_NAMES: [&str; 8] = [
    "Anna's birthday.jpg",
    "Anna's birthday+1.jpg",
    "Strand 🏖️.jpg",
    "Grüße aus München.jpg",
    "100% sunshine.jpg",
    "50%25 off.jpg",
    "Cafe\u{301} 日本.jpg",
    "-rf [final] & more?.jpg",
];

/// The photos are spread over this many days from the first on.
const DAYS: i64 = 400;

/// Photos whose number is a multiple of this show the person whom the admin has named; one of three, so that they are the admin's.
const FACE_EVERY: u32 = 6;

/// The album of all photos with a place.
const COAST: &str = "Baltic coast";
/// That of all photos taken in the summer of 2024.
const SUMMER: &str = "Summer of 2024";
/// That of all photos that Anna took.
const WALKS: &str = "Anna's walks";

/// What is made: files, and a database that fits them.
pub(crate) struct Sample {
    pub(crate) files: Folder,
    pub(crate) database: Database,
}

/// Fills `out` with a whole media location of `photos` photos.
pub(crate) fn generate(out: &mut Sample, photos: u32) -> anyhow::Result<()> {
    let first_day = date(2024, 6, 15).at(0, 0, 0, 0);
    let installed = instant(first_day)?;
    for folder in FOLDERS {
        let marker = installed.as_millisecond().to_string();
        out.files.write(&format!("{folder}/.immich"), marker.as_bytes(), installed)?;
    }
    out.database.installation(id("installation", 0), installed)?;
    for (user, name, email) in [(ADMIN, "Ole", "ole@example.org"), (ANNA, "Anna", "anna@example.org")] {
        let face = Scene::new(noise(&[user.as_u64_pair().0]), first_day).jpeg(256, 256, 85, None)?;
        let profile = format!("profile/{user}/{}.jpg", id("profile", user.as_u64_pair().0));
        out.files.write(&profile, &face, installed)?;
        let profile = on_server(&profile);
        let mut row: Vec<(&str, &dyn Display)> =
            vec![("id", &user), ("email", &email), ("name", &name), ("profileImagePath", &profile), ("createdAt", &installed)];
        if user == ADMIN {
            row.extend([("isAdmin", &true as &dyn Display), ("storageLabel", &"admin")]);
        }
        out.database.insert("user", &row)?;
    }
    person(out, first_day)?;
    albums(out, installed)?;
    for number in 0..photos {
        let day = DAYS * i64::from(number) / i64::from(photos);
        let second = 6 * 3600 + noise_below(16 * 3600, &[2, u64::from(number)]);
        let taken = first_day.checked_add(day.days().seconds(second))?;
        one_photo(out, number, taken)?;
    }
    one_video(out, date(2024, 6, 16).at(19, 5, 33, 0))
}

/// The one person that the admin has named, with the picture that Immich cut out of a photo.
fn person(out: &mut Sample, first_day: DateTime) -> anyhow::Result<()> {
    let person = id("person", 0);
    let path = format!("thumbs/{ADMIN}/{}.jpeg", scattered(person));
    out.files.write(&path, &Scene::new(noise(&[4]), first_day).jpeg(250, 250, 80, None)?, instant(first_day)?)?;
    let row: [(&str, &dyn Display); 5] =
        [("id", &person), ("ownerId", &ADMIN), ("name", &"Grandma Grete"), ("birthDate", &"1948-03-21"), ("thumbnailPath", &on_server(&path))];
    out.database.insert("person", &row)
}

/// The albums; the first is shared with Anna.
fn albums(out: &mut Sample, created: Timestamp) -> anyhow::Result<()> {
    for (name, owner) in [(COAST, ADMIN), (SUMMER, ADMIN), (WALKS, ANNA)] {
        let album = id(name, 0);
        out.database.insert("album", &[("id", &album), ("albumName", &name), ("createdAt", &created)])?;
        out.database.insert("album_user", &[("albumId", &album), ("userId", &owner), ("role", &"owner")])?;
    }
    out.database.insert("album_user", &[("albumId", &id(COAST, 0)), ("userId", &ANNA), ("role", &"editor")])
}

/// A photo with all that Immich keeps beside it. Some have a sidecar, some a short video, some lie in the trash.
fn one_photo(out: &mut Sample, number: u32, taken: DateTime) -> anyhow::Result<()> {
    let asset = id("asset", u64::from(number));
    let camera_name = format!("IMG_{:04}.jpg", number + 1);
    let (owner, name, path) = match (number % 3, ODD_NAMES.get(number as usize / 3)) {
        (2, _) => (ANNA, camera_name.as_str(), format!("upload/{ANNA}/{}.jpg", scattered(id("file", u64::from(number))))),
        (1, Some(name)) => (ADMIN, *name, templated(taken, name)),
        _ => (ADMIN, camera_name.as_str(), templated(taken, &camera_name)),
    };
    let modified = instant(taken)?;
    let scene = Scene::new(u64::from(number), taken);
    let shot = Shot { taken, number, width: 640, height: 480, place: number.is_multiple_of(2) };
    let video = short_video(out, number, owner, &scene, taken)?;
    let content = scene.jpeg(shot.width, shot.height, 88, Some(&photo::exif(&shot)?))?;
    let trashed = if number % 10 == 4 { Some(instant(taken.checked_add(3.days())?)?) } else { None };
    let kind = Kind::Photo { video };
    let size = (shot.width, shot.height);
    original(out, &Asset { id: asset, owner, path: &path, name, content: &content, taken: modified, size, kind, trashed })?;
    let (rating, description) = (shot.rating(), shot.description());
    let mut seen: Vec<(&str, &dyn Display)> = Vec::new();
    if number.is_multiple_of(4) {
        let edited = instant(taken.checked_add(1.day())?)?;
        let sidecar = format!("{path}.xmp");
        out.files.write(&sidecar, photo::sidecar(&shot).as_bytes(), edited)?;
        out.database.file(id("sidecar", u64::from(number)), asset, "sidecar", &sidecar)?;
        seen.extend([("rating", &rating as &dyn Display), ("description", &description)]);
    }
    let (latitude, longitude) = shot.place();
    if shot.place {
        seen.extend([("latitude", &latitude as &dyn Display), ("longitude", &longitude)]);
    }
    seen.extend([("make", &photo::MAKE as &dyn Display), ("model", &photo::MODEL)]);
    exif(out, asset, &content, modified, &seen)?;
    meaning(out, number, owner, taken)?;
    thumbs(out, owner, asset, &scene, modified)
}

/// The video that a camera took along with the photo, if it did.
fn short_video(out: &mut Sample, number: u32, owner: Uuid, scene: &Scene, taken: DateTime) -> anyhow::Result<Option<Uuid>> {
    let asset = id("motion", u64::from(number));
    let (path, name) = match number {
        // A live photo: its video was uploaded beside it.
        0 => (templated(taken, "IMG_0001.mp4"), "IMG_0001.mp4"),
        // A motion photo: Immich cut the video out of the picture, so this one is an original too.
        2 => (format!("encoded-video/{owner}/{}-MP.mp4", scattered(asset)), "IMG_0003.mp4"),
        _ => return Ok(None),
    };
    let modified = instant(taken)?;
    let content = movie::mp4(scene, 320, 240, 12, modified)?;
    let kind = Kind::Video { duration: 1000, hidden: true };
    original(out, &Asset { id: asset, owner, path: &path, name, content: &content, taken: modified, size: (320, 240), kind, trashed: None })?;
    exif(out, asset, &content, modified, &[])?;
    Ok(Some(asset))
}

/// A video, and the smaller one that Immich made of it.
fn one_video(out: &mut Sample, taken: DateTime) -> anyhow::Result<()> {
    let (asset, name) = (id("video", 0), "VID_0001.mp4");
    let modified = instant(taken)?;
    let scene = Scene::new(noise(&[3]), taken);
    let (path, content) = (templated(taken, name), movie::mp4(&scene, 320, 240, 24, modified)?);
    let kind = Kind::Video { duration: 2000, hidden: false };
    original(out, &Asset { id: asset, owner: ADMIN, path: &path, name, content: &content, taken: modified, size: (320, 240), kind, trashed: None })?;
    exif(out, asset, &content, modified, &[])?;
    let smaller = format!("encoded-video/{ADMIN}/{}.mp4", scattered(asset));
    out.files.write(&smaller, &movie::mp4(&scene, 160, 120, 24, modified)?, modified)?;
    out.database.file(id("encoded", 0), asset, "encoded_video", &smaller)?;
    thumbs(out, ADMIN, asset, &scene, modified)
}

/// The file that somebody uploaded, and its row.
fn original(out: &mut Sample, asset: &Asset<'_>) -> anyhow::Result<()> {
    out.files.write(asset.path, asset.content, asset.taken)?;
    out.database.asset(asset)
}

/// What Immich read out of a file, and what `more` there is.
fn exif(out: &mut Sample, asset: Uuid, content: &[u8], taken: Timestamp, more: &[(&str, &dyn Display)]) -> anyhow::Result<()> {
    let size = content.len();
    let known: [(&str, &dyn Display); 3] = [("assetId", &asset), ("fileSizeInByte", &size), ("dateTimeOriginal", &taken)];
    out.database.insert("asset_exif", &[&known, more].concat())
}

/// What people and Immich made of a photo: albums, a face, an embedding to search by (one of few numbers, that means nothing).
fn meaning(out: &mut Sample, number: u32, owner: Uuid, taken: DateTime) -> anyhow::Result<()> {
    let asset = id("asset", u64::from(number));
    let is_summer = taken.year() == 2024 && (6..=8).contains(&taken.month());
    for (album, is_in) in [(COAST, number.is_multiple_of(2)), (SUMMER, is_summer && owner == ADMIN), (WALKS, owner == ANNA)] {
        if is_in {
            out.database.insert("album_asset", &[("albumId", &id(album, 0)), ("assetId", &asset)])?;
        }
    }
    if number.is_multiple_of(FACE_EVERY) {
        let (left, top) = (100 + number % 300, 80);
        let (right, bottom) = (left + 60, top + 60);
        let row: [(&str, &dyn Display); 7] = [
            ("id", &id("face", u64::from(number))),
            ("assetId", &asset),
            ("personId", &id("person", 0)),
            ("boundingBoxX1", &left),
            ("boundingBoxY1", &top),
            ("boundingBoxX2", &right),
            ("boundingBoxY2", &bottom),
        ];
        out.database.insert("asset_face", &row)?;
    }
    let numbers: Vec<_> = (0..8).map(|place| format!("0.{:03}", noise_below(1000, &[5, u64::from(number), place]))).collect();
    out.database.insert("smart_search", &[("assetId", &asset), ("embedding", &format!("{{{}}}", numbers.join(",")))])
}

fn thumbs(out: &mut Sample, owner: Uuid, asset: Uuid, scene: &Scene, modified: Timestamp) -> anyhow::Result<()> {
    let stem = format!("thumbs/{owner}/{}", scattered(asset));
    for (kind, end, content) in [("preview", "preview.jpeg", scene.jpeg(320, 240, 80, None)?), ("thumbnail", "thumbnail.webp", scene.webp(120, 90)?)] {
        let path = format!("{stem}_{end}");
        out.files.write(&path, &content, modified)?;
        out.database.file(id(kind, asset.as_u64_pair().0), asset, kind, &path)?;
    }
    Ok(())
}

/// Where Immich's default storage template puts a file of the user `admin`.
fn templated(taken: DateTime, name: &str) -> String {
    format!("library/admin/{}/{}/{name}", taken.year(), taken.date())
}

/// `aa/bb/<uuid>`, as Immich spreads files over folders.
fn scattered(id: Uuid) -> String {
    let text = id.to_string();
    let (first, rest) = text.split_at(2);
    let (second, _) = rest.split_at(2);
    format!("{first}/{second}/{text}")
}

/// A random-looking UUID that is always the same for the same thing.
fn id(kind: &str, number: u64) -> Uuid {
    let kind: u64 = kind.bytes().fold(0, |sum, byte| noise(&[sum, u64::from(byte)]));
    let bits = u128::from(noise(&[kind, number, 0])) << 64 | u128::from(noise(&[kind, number, 1]));
    Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
}

fn instant(taken: DateTime) -> anyhow::Result<Timestamp> {
    let zoned = taken.to_zoned(TimeZone::UTC).with_context(|| format!("no such time: {taken}"))?;
    Ok(zoned.timestamp())
}
