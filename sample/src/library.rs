//! Which files an Immich media location holds, and where.

use anyhow::Context;
use jiff::civil::{DateTime, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use uuid::{Builder, Uuid};

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

/// Fills `out` with a whole media location of `photos` photos.
pub(crate) fn generate(out: &mut Folder, photos: u32) -> anyhow::Result<()> {
    let first_day = date(2024, 6, 15).at(0, 0, 0, 0);
    let installed = instant(first_day)?;
    for folder in FOLDERS {
        let marker = installed.as_millisecond().to_string();
        out.write(&format!("{folder}/.immich"), marker.as_bytes(), installed)?;
    }
    for user in [ADMIN, ANNA] {
        let face = Scene::new(noise(&[user.as_u64_pair().0]), first_day).jpeg(256, 256, 85, None)?;
        out.write(&format!("profile/{user}/{}.jpg", id("profile", user.as_u64_pair().0)), &face, installed)?;
    }
    for number in 0..photos {
        let day = DAYS * i64::from(number) / i64::from(photos);
        let second = 6 * 3600 + noise_below(16 * 3600, &[2, u64::from(number)]);
        let taken = first_day.checked_add(day.days().seconds(second))?;
        one_photo(out, number, taken)?;
    }
    one_video(out, date(2024, 6, 16).at(19, 5, 33, 0))
}

/// A photo with all that Immich keeps beside it. Some have a sidecar, some a short video.
fn one_photo(out: &mut Folder, number: u32, taken: DateTime) -> anyhow::Result<()> {
    let asset = id("asset", u64::from(number));
    let (user, original) = match (number % 3, ODD_NAMES.get(number as usize / 3)) {
        (2, _) => (ANNA, format!("upload/{ANNA}/{}.jpg", scattered(id("file", u64::from(number))))),
        (1, Some(name)) => (ADMIN, templated(taken, name)),
        _ => (ADMIN, templated(taken, &format!("IMG_{:04}.jpg", number + 1))),
    };
    let modified = instant(taken)?;
    let scene = Scene::new(u64::from(number), taken);
    let shot = Shot { taken, number, width: 640, height: 480, place: number.is_multiple_of(2) };
    out.write(&original, &scene.jpeg(shot.width, shot.height, 88, Some(&photo::exif(&shot)?))?, modified)?;
    if number.is_multiple_of(4) {
        let edited = instant(taken.checked_add(1.day())?)?;
        out.write(&format!("{original}.xmp"), photo::sidecar(&shot).as_bytes(), edited)?;
    }
    match number {
        // A live photo: its video was uploaded beside it.
        0 => out.write(&templated(taken, "IMG_0001.mp4"), &movie::mp4(&scene, 320, 240, 12, modified)?, modified)?,
        // A motion photo: Immich cut the video out of the picture, so this one is an original too.
        2 => out.write(
            &format!("encoded-video/{user}/{}-MP.mp4", scattered(id("motion", u64::from(number)))),
            &movie::mp4(&scene, 320, 240, 12, modified)?,
            modified,
        )?,
        _ => {}
    }
    thumbs(out, user, asset, &scene, modified)
}

/// A video, and the smaller one that Immich made of it.
fn one_video(out: &mut Folder, taken: DateTime) -> anyhow::Result<()> {
    let asset = id("video", 0);
    let modified = instant(taken)?;
    let scene = Scene::new(noise(&[3]), taken);
    out.write(&templated(taken, "VID_0001.mp4"), &movie::mp4(&scene, 320, 240, 24, modified)?, modified)?;
    let smaller = movie::mp4(&scene, 160, 120, 24, modified)?;
    out.write(&format!("encoded-video/{ADMIN}/{}.mp4", scattered(asset)), &smaller, modified)?;
    thumbs(out, ADMIN, asset, &scene, modified)
}

fn thumbs(out: &mut Folder, user: Uuid, asset: Uuid, scene: &Scene, modified: Timestamp) -> anyhow::Result<()> {
    let stem = format!("thumbs/{user}/{}", scattered(asset));
    out.write(&format!("{stem}_preview.jpeg"), &scene.jpeg(320, 240, 80, None)?, modified)?;
    out.write(&format!("{stem}_thumbnail.webp"), &scene.webp(120, 90)?, modified)
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
