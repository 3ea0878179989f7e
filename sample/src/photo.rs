//! What a camera and a person write about a photo: EXIF in the file, XMP beside it.

use std::io::Cursor;

use anyhow::Context;
use exif::experimental::Writer;
use exif::{Field, In, Rational, Tag, Value};
use jiff::civil::DateTime;

/// Who made the camera.
pub(crate) const MAKE: &str = "Sample Optics";
/// The camera.
pub(crate) const MODEL: &str = "Landscape One";

/// The facts about one photo.
pub(crate) struct Shot {
    /// In UTC.
    pub(crate) taken: DateTime,
    pub(crate) number: u32,
    pub(crate) width: u16,
    pub(crate) height: u16,
    /// Whether the camera knew where it was.
    pub(crate) place: bool,
}

impl Shot {
    /// Along the Baltic coast, a little further for each photo: seconds of an arc, times 60.
    fn further(&self) -> u32 {
        self.number % 3600
    }

    /// Latitude and longitude in degrees, for a camera that knew them.
    pub(crate) fn place(&self) -> (f64, f64) {
        let [north, east] = [(54 * 60 + 26), (12 * 60 + 41)].map(|minutes| f64::from(minutes * 3600 + self.further()) / 216_000.0);
        (north, east)
    }

    /// Stars, 1 to 5.
    pub(crate) fn rating(&self) -> u32 {
        self.number % 5 + 1
    }

    pub(crate) fn description(&self) -> String {
        format!("Photo {}, seen on a walk", self.number + 1)
    }
}

/// The EXIF of a photo, as it goes into the JPEG.
pub(crate) fn exif(shot: &Shot) -> anyhow::Result<Vec<u8>> {
    let time = shot.taken.strftime("%Y:%m:%d %H:%M:%S").to_string();
    let mut values = vec![
        (Tag::Make, text(MAKE)),
        (Tag::Model, text(MODEL)),
        (Tag::Orientation, Value::Short(vec![1])),
        (Tag::XResolution, ratios(&[(72, 1)])),
        (Tag::YResolution, ratios(&[(72, 1)])),
        (Tag::ResolutionUnit, Value::Short(vec![2])),
        (Tag::YCbCrPositioning, Value::Short(vec![1])),
        (Tag::DateTime, text(&time)),
        (Tag::ExifVersion, Value::Undefined(b"0232".to_vec(), 0)),
        (Tag::FlashpixVersion, Value::Undefined(b"0100".to_vec(), 0)),
        (Tag::ComponentsConfiguration, Value::Undefined(vec![1, 2, 3, 0], 0)),
        (Tag::ColorSpace, Value::Short(vec![1])),
        (Tag::PixelXDimension, Value::Long(vec![shot.width.into()])),
        (Tag::PixelYDimension, Value::Long(vec![shot.height.into()])),
        (Tag::DateTimeOriginal, text(&time)),
        (Tag::OffsetTimeOriginal, text("+00:00")),
        (Tag::ExposureTime, ratios(&[(1, 250)])),
        (Tag::FNumber, ratios(&[(28, 10)])),
        (Tag::PhotographicSensitivity, Value::Short(vec![100])),
        (Tag::FocalLength, ratios(&[(35, 1)])),
    ];
    if shot.place {
        let seconds = shot.further();
        values.push((Tag::GPSVersionID, Value::Byte(vec![2, 3, 0, 0])));
        values.push((Tag::GPSLatitudeRef, text("N")));
        values.push((Tag::GPSLatitude, ratios(&[(54, 1), (26, 1), (seconds, 60)])));
        values.push((Tag::GPSLongitudeRef, text("E")));
        values.push((Tag::GPSLongitude, ratios(&[(12, 1), (41, 1), (seconds, 60)])));
    }
    let fields: Vec<Field> = values.into_iter().map(|(tag, value)| Field { tag, ifd_num: In::PRIMARY, value }).collect();
    let mut writer = Writer::new();
    for field in &fields {
        writer.push_field(field);
    }
    let mut out = Cursor::new(Vec::new());
    writer.write(&mut out, false).context("cannot encode EXIF")?;
    Ok(out.into_inner())
}

/// The XMP sidecar that Immich writes once somebody rates or describes a photo.
pub(crate) fn sidecar(shot: &Shot) -> String {
    format!(
        r#"<?xpacket begin="{bom}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{description}</rdf:li>
    </rdf:Alt>
   </dc:description>
   <xmp:Rating>{rating}</xmp:Rating>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"#,
        bom = '\u{feff}',
        description = shot.description(),
        rating = shot.rating(),
    )
}

fn text(value: &str) -> Value {
    Value::Ascii(vec![value.as_bytes().to_vec()])
}

fn ratios(values: &[(u32, u32)]) -> Value {
    Value::Rational(values.iter().map(|&(num, denom)| Rational { num, denom }).collect())
}
