//! Short silent videos: Motion JPEG in an MP4 file (ISO/IEC 14496-12 and -14), which needs no video encoder.

use anyhow::Context;
use jiff::Timestamp;

use crate::scene::Scene;

const FRAMES_PER_SECOND: u32 = 12;
/// MP4 counts seconds from 1904 on.
const SECONDS_1904_TO_1970: i64 = 2_082_844_800;
/// Motion JPEG, among MPEG-4's registered object types.
const OBJECT_TYPE_JPEG: u8 = 0x6c;
/// "As it is": the transformation of picture and track, as 16.16 and 2.30 fixed point numbers.
const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

/// A video of `frames` pictures in which the scene's sun moves along.
pub(crate) fn mp4(scene: &Scene, width: u16, height: u16, frames: u32, taken: Timestamp) -> anyhow::Result<Vec<u8>> {
    let pictures = (0..frames).map(|frame| scene.later(frame).jpeg(width, height, 75, None)).collect::<anyhow::Result<Vec<_>>>()?;
    let sizes = pictures.iter().map(|picture| length(picture)).collect::<anyhow::Result<Vec<_>>>()?;
    let when = u32::try_from(taken.as_second() + SECONDS_1904_TO_1970).context("no time for an MP4")?;

    let start = atom(b"ftyp", &[b"mp42", &0u32.to_be_bytes(), b"mp42isom"])?;
    let samples_at = length(&start)? + 8; // behind the header of `mdat`
    let parts: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let data = atom(b"mdat", &parts)?;
    let movie = atom(
        b"moov",
        &[
            &atom(
                b"mvhd",
                &[&words(&[0, when, when, FRAMES_PER_SECOND, frames, 0x1_0000, 0x0100_0000, 0, 0]), &words(&MATRIX), &words(&[0, 0, 0, 0, 0, 0, 2])],
            )?,
            &track(width, height, when, &sizes, samples_at)?,
        ],
    )?;
    Ok([start, data, movie].concat())
}

fn track(width: u16, height: u16, when: u32, sizes: &[u32], samples_at: u32) -> anyhow::Result<Vec<u8>> {
    let frames = u32::try_from(sizes.len()).context("too many pictures")?;
    let fixed = |side: u16| u32::from(side) << 16;
    let head = atom(b"tkhd", &[&words(&[7, when, when, 1, 0, frames, 0, 0, 0, 0]), &words(&MATRIX), &words(&[fixed(width), fixed(height)])])?;
    let media_head = atom(b"mdhd", &[&words(&[0, when, when, FRAMES_PER_SECOND, frames, 0x55c4_0000])])?;
    let handler = atom(b"hdlr", &[&words(&[0, 0]), b"vide", &words(&[0, 0, 0]), b"video\0"])?;
    let here = atom(b"url ", &[&words(&[1])])?;
    let data_info = atom(b"dinf", &[&atom(b"dref", &[&words(&[0, 1]), &here])?])?;
    // All pictures are key frames of one length in one chunk.
    let table = atom(
        b"stbl",
        &[
            &atom(b"stsd", &[&words(&[0, 1]), &sample_entry(width, height, sizes)?])?,
            &atom(b"stts", &[&words(&[0, 1, frames, 1])])?,
            &atom(b"stsc", &[&words(&[0, 1, 1, frames, 1])])?,
            &atom(b"stsz", &[&words(&[0, 0, frames]), &words(sizes)])?,
            &atom(b"stco", &[&words(&[0, 1, samples_at])])?,
        ],
    )?;
    let info = atom(b"minf", &[&atom(b"vmhd", &[&words(&[1, 0, 0])])?, &data_info, &table])?;
    atom(b"trak", &[&head, &atom(b"mdia", &[&media_head, &handler, &info])?])
}

/// Says that the samples are JPEGs of this size.
fn sample_entry(width: u16, height: u16, sizes: &[u32]) -> anyhow::Result<Vec<u8>> {
    let largest = sizes.iter().max().copied().unwrap_or(0);
    let bits_per_second = sizes.iter().sum::<u32>().saturating_mul(8 * FRAMES_PER_SECOND) / u32::try_from(sizes.len().max(1)).context("too many pictures")?;
    let [_, buffer @ ..] = largest.to_be_bytes();
    let decoder = [&[OBJECT_TYPE_JPEG, 0x11], &buffer[..], &words(&[bits_per_second, bits_per_second])].concat();
    let stream = [&[0, 0, 0][..], &described(4, &decoder)?, &described(6, &[2])?].concat();
    let [width, height] = [width, height].map(u16::to_be_bytes);
    atom(
        b"mp4v",
        &[
            &words(&[0, 1, 0, 0, 0, 0]),
            &width,
            &height,
            &words(&[0x48_0000, 0x48_0000, 0, 0x1_0000]), // 72 dpi; one frame a sample, no name of a compressor
            &[0; 30],                                     // the rest of that name
            &[0, 24, 0xff, 0xff],                         // 24 bits a pixel, no colour table
            &atom(b"esds", &[&words(&[0]), &described(3, &stream)?])?,
        ],
    )
}

/// A descriptor of MPEG-4: tag, length, content.
fn described(tag: u8, content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u8::try_from(content.len()).context("an MPEG-4 descriptor grew too long")?;
    Ok([&[tag, length], content].concat())
}

/// A box of an MP4 file: length, kind, content.
fn atom(kind: &[u8; 4], parts: &[&[u8]]) -> anyhow::Result<Vec<u8>> {
    let content = parts.concat();
    Ok([&(length(&content)? + 8).to_be_bytes()[..], kind, &content].concat())
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn length(bytes: &[u8]) -> anyhow::Result<u32> {
    u32::try_from(bytes.len()).context("an MP4 of 4 GiB and more is not for samples")
}
