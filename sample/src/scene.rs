//! Landscapes, painted by integer arithmetic alone, so that every machine paints the same bytes.

use anyhow::Context;
use image_webp::WebPEncoder;
use jiff::civil::DateTime;
use jpeg_encoder::{ColorType, Encoder};

type Colour = [i64; 3];

/// A scene is this wide and high whatever the size of the picture.
const WIDTH: i64 = 4000;
const HEIGHT: i64 = 3000;

/// What one picture shows: hills under a sky, a sun or a moon, trees, perhaps a lake.
#[derive(Clone)]
pub(crate) struct Scene {
    seed: u64,
    light: Light,
    hills: Colour,
    sun_at: (i64, i64),
    /// The height at which a lake begins.
    shore: Option<i64>,
}

#[derive(Clone)]
struct Light {
    zenith: Colour,
    horizon: Colour,
    sun: Colour,
    /// Of 100, how bright what lies in the light is.
    brightness: i64,
}

/// What stands above one another at `x`.
struct Column {
    x: i64,
    /// Where the rows of hills begin, the furthest first.
    ridges: [i64; 3],
    tree: Option<Tree>,
}

struct Tree {
    trunk: i64,
    foot: i64,
    tall: i64,
}

impl Scene {
    /// The scene with this seed, in the light and the season of `taken`.
    pub(crate) fn new(seed: u64, taken: DateTime) -> Scene {
        let (zenith, horizon, sun, brightness) = match taken.hour() {
            5..=8 => ([86, 112, 178], [255, 196, 158], [255, 232, 186], 85),
            9..=17 => ([58, 128, 216], [196, 228, 250], [255, 252, 228], 100),
            18..=20 => ([64, 44, 116], [252, 138, 74], [255, 184, 92], 70),
            _ => ([8, 12, 36], [44, 58, 98], [236, 236, 216], 35),
        };
        let hills = match taken.month() {
            3..=5 => [122, 172, 84],
            6..=8 => [84, 132, 58],
            9..=11 => [176, 112, 48],
            _ => [206, 218, 230],
        };
        let lake = noise_below(3, &[seed, 10]) == 0;
        Scene {
            seed,
            light: Light { zenith, horizon, sun, brightness },
            hills,
            sun_at: (400 + noise_below(3200, &[seed, 11]), 350 + noise_below(900, &[seed, 12])),
            shore: lake.then(|| 2250 + noise_below(250, &[seed, 13])),
        }
    }

    /// The same scene with the sun moved along, for the next picture of a video.
    pub(crate) fn later(&self, frame: u32) -> Scene {
        let (x, y) = self.sun_at;
        Scene { sun_at: ((x + i64::from(frame) * 60) % WIDTH, y + i64::from(frame) * 15), ..self.clone() }
    }

    /// The picture as a JPEG, with EXIF if there is any.
    pub(crate) fn jpeg(&self, width: u16, height: u16, quality: u8, exif: Option<&[u8]>) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, quality);
        if let Some(exif) = exif {
            encoder.add_exif_metadata(exif).context("cannot put EXIF into a JPEG")?;
        }
        encoder.encode(&self.paint(width, height), width, height, ColorType::Rgb).context("cannot encode a JPEG")?;
        Ok(out)
    }

    /// The picture as a lossless WebP.
    pub(crate) fn webp(&self, width: u16, height: u16) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::new();
        WebPEncoder::new(&mut out)
            .encode(&self.paint(width, height), width.into(), height.into(), image_webp::ColorType::Rgb8)
            .context("cannot encode a WebP")?;
        Ok(out)
    }

    fn paint(&self, width: u16, height: u16) -> Vec<u8> {
        let columns: Vec<Column> = (0..i64::from(width)).map(|column| self.column(column * WIDTH / i64::from(width))).collect();
        let mut pixels = Vec::with_capacity(usize::from(width) * usize::from(height) * 3);
        for row in 0..i64::from(height) {
            let y = row * HEIGHT / i64::from(height);
            for column in &columns {
                let grain = noise_below(7, &[self.seed ^ (column.x << 16 | y).unsigned_abs()]) - 3;
                pixels.extend(self.colour(column, y).map(|part| byte(part + grain)));
            }
        }
        pixels
    }

    fn colour(&self, column: &Column, y: i64) -> Colour {
        match self.shore {
            Some(shore) if y > shore => {
                let ripple = (column.x / 25 + y / 15) % 3 * 15;
                let mirrored = self.land_or_sky(column, 2 * shore - y + ripple);
                blend(mirrored, [30, 70, 110], 35)
            }
            _ => self.land_or_sky(column, y),
        }
    }

    /// Front to back: a tree, three rows of hills, the sky.
    fn land_or_sky(&self, column: &Column, y: i64) -> Colour {
        let lit = self.hills.map(|part| part * self.light.brightness / 100);
        if column.tree.as_ref().is_some_and(|tree| tree.covers(column.x, y)) {
            return blend(lit, [12, 34, 24], 75);
        }
        let [far, middle, near] = column.ridges;
        for (ridge, haze) in [(near, 0), (middle, 40), (far, 70)] {
            if y > ridge {
                let shade = blend(lit, [0, 0, 0], ((y - ridge) / 30).min(30));
                return blend(shade, self.light.horizon, haze);
            }
        }
        self.sky(column.x, y)
    }

    fn sky(&self, x: i64, y: i64) -> Colour {
        let sky = blend(self.light.zenith, self.light.horizon, y * 100 / 1900);
        let (sun_x, sun_y) = self.sun_at;
        let (radius, distance) = (150 * 150, (x - sun_x).pow(2) + (y - sun_y).pow(2));
        if distance < radius {
            return self.light.sun;
        }
        blend(sky, self.light.sun, 45 - distance * 45 / (radius * 16))
    }

    fn column(&self, x: i64) -> Column {
        Column { x, ridges: [0, 1, 2].map(|row| self.ridge(row, x)), tree: self.tree(x) }
    }

    /// How far down the hills of `row` (0 is the furthest) begin at `x`.
    fn ridge(&self, row: i64, x: i64) -> i64 {
        let rough: i64 = [(1300, 520), (560, 190), (170, 45)]
            .into_iter()
            .map(|(period, swing)| {
                let (cell, t) = (x / period, x % period);
                let at = |cell: i64| noise_below(swing, &[self.seed, 20, row.unsigned_abs(), cell.unsigned_abs()]);
                // Smoothstep between the two neighbours.
                let ease = t * t * (3 * period - 2 * t) / (period * period);
                at(cell) + (at(cell + 1) - at(cell)) * ease / period
            })
            .sum();
        1150 + row * 430 + rough
    }

    /// The fir that may stand near `x` on the nearest row of hills, at most one in each stretch of it.
    fn tree(&self, x: i64) -> Option<Tree> {
        let stretch = x / 190;
        let roll = |what| noise_below(100, &[self.seed, 30, stretch.unsigned_abs(), what]);
        let trunk = stretch * 190 + 60 + roll(1) * 70 / 100;
        (roll(0) < 45).then(|| Tree { trunk, foot: self.ridge(2, trunk) + 30, tall: 180 + roll(2) * 3 })
    }
}

impl Tree {
    fn covers(&self, x: i64, y: i64) -> bool {
        let from_top = y - (self.foot - self.tall);
        let half = from_top % (self.tall / 3 + 1) / 3 + from_top / 8;
        (0..=self.tall).contains(&from_top) && (x - self.trunk).abs() < half
    }
}

/// `a` with `percent` of `b` in it; below 0 is 0, over 100 is 100.
fn blend(a: Colour, b: Colour, percent: i64) -> Colour {
    let percent = percent.clamp(0, 100);
    let [[a0, a1, a2], [b0, b1, b2]] = [a, b];
    [(a0, b0), (a1, b1), (a2, b2)].map(|(a, b)| a + (b - a) * percent / 100)
}

fn byte(value: i64) -> u8 {
    u8::try_from(value.clamp(0, 255)).unwrap_or(u8::MAX)
}

/// A number that looks random and is always the same for the same `key` (the mixer of SplitMix64).
pub(crate) fn noise(key: &[u64]) -> u64 {
    key.iter().fold(0x2545_f491_4f6c_dd1d, |state, part| {
        let mut z = state.wrapping_add(*part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The same, from 0 up to but without `below`; 0 if there is no such number.
pub(crate) fn noise_below(below: i64, key: &[u64]) -> i64 {
    i64::try_from(noise(key) >> 1).unwrap_or(0).checked_rem(below).unwrap_or(0)
}
