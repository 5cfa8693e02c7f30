//! An `image` feature's files as JPEG: JPEG stays as it is, PNG (what LeRobot writes) becomes JPEG.
//!
//! It knows neither parquet nor episodes.

use std::panic::catch_unwind;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bit_depth::BitDepth;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_png::PngDecoder;
use zunft_protocol::limits::CHUNK_BYTES_MAX;

/// Quality of JPEG made from PNG: its faults are below a camera's noise.
const JPEG_QUALITY: u8 = 95;

/// What a chunk of one image has beside it: header, time, length, key frame; rounded up.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// Why an image's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// Neither of the two.
    #[error("it is neither PNG nor JPEG")]
    Kind,
    /// Not what it begins like.
    #[error("it cannot be decoded or encoded")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another size than the feature's.
    #[error("it is {found:?}; meta/info.json declares {expected:?} (height, width, channels)")]
    Shape {
        /// Height, width and channels of the image.
        found: [u32; 3],
        /// Those of the feature.
        expected: [u32; 3],
    },
    /// Pixels that are no bytes.
    #[error("its channels do not have 8 bits; nothing else is read")]
    Depth,
    /// A file that fits in no chunk.
    #[error("as JPEG it takes {bytes} bytes; at most {} fit in a chunk", CHUNK_BYTES_MAX - CHUNK_OVERHEAD_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// The image as a JPEG file of this shape: height, width, channels.
pub(super) fn jpeg_of(file: &[u8], expected: [u32; 3]) -> Result<Vec<u8>, ImageFileError> {
    // A decoder that panics was given nonsense: that is the file's fault.
    let nonsense = || ImageFileError::Decode("its contents contradict each other".into());
    let jpeg = catch_unwind(|| match file {
        [0xff, 0xd8, ..] => kept(file, expected),
        [0x89, b'P', b'N', b'G', ..] => encoded(file, expected),
        _ => Err(ImageFileError::Kind),
    });
    let jpeg = jpeg.unwrap_or_else(|_| Err(nonsense()))?;
    if jpeg.len() > CHUNK_BYTES_MAX - CHUNK_OVERHEAD_BYTES {
        return Err(ImageFileError::TooLarge { bytes: jpeg.len() });
    }
    Ok(jpeg)
}

fn kept(file: &[u8], expected: [u32; 3]) -> Result<Vec<u8>, ImageFileError> {
    let mut decoder = JpegDecoder::new(ZCursor::new(file));
    decoder.decode_headers().map_err(|error| ImageFileError::Decode(Box::new(error)))?;
    let info = decoder.info().ok_or(ImageFileError::Kind)?;
    check_shape([info.height.into(), info.width.into(), info.components.into()], expected)?;
    Ok(file.to_vec())
}

fn encoded(file: &[u8], expected: [u32; 3]) -> Result<Vec<u8>, ImageFileError> {
    let decode_error = |error| ImageFileError::Decode(Box::new(error));
    let options = DecoderOptions::default().set_strict_mode(true);
    let mut decoder = PngDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(decode_error)?;
    let (width, height) = decoder.dimensions().ok_or(ImageFileError::Kind)?;
    // Palettes and transparency are no pixels of a camera: their channels differ from what is expected.
    let colors = decoder.colorspace().ok_or(ImageFileError::Kind)?;
    check_shape([height as u32, width as u32, colors.num_components() as u32], expected)?;
    if decoder.depth() != Some(BitDepth::Eight) {
        return Err(ImageFileError::Depth);
    }
    let pixels = decoder.decode_raw().map_err(decode_error)?;
    let color = if expected[2] == 1 { jpeg_encoder::ColorType::Luma } else { jpeg_encoder::ColorType::Rgb };
    let [height, width] = [height, width].map(|side| u16::try_from(side).unwrap_or(0));
    let mut jpeg = Vec::new();
    jpeg_encoder::Encoder::new(&mut jpeg, JPEG_QUALITY)
        .encode(&pixels, width, height, color)
        .map_err(|error| ImageFileError::Decode(Box::new(error)))?;
    Ok(jpeg)
}

fn check_shape(found: [u32; 3], expected: [u32; 3]) -> Result<(), ImageFileError> {
    if found == expected { Ok(()) } else { Err(ImageFileError::Shape { found, expected }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use zune_jpeg::zune_core::colorspace::ColorSpace;
    use zune_jpeg::zune_core::options::EncoderOptions;
    use zune_png::PngEncoder;

    use super::*;

    /// A PNG of one colour.
    pub(crate) fn png(width: u32, height: u32, rgb: [u8; 3]) -> Vec<u8> {
        let options = EncoderOptions::new(width as usize, height as usize, ColorSpace::RGB, BitDepth::Eight);
        let mut file = Vec::new();
        PngEncoder::new(&rgb.repeat((width * height) as usize), options).encode(&mut file).unwrap();
        file
    }

    #[test]
    fn png_becomes_jpeg_and_jpeg_stays_as_it_is() {
        let jpeg = jpeg_of(&png(8, 6, [250, 20, 30]), [6, 8, 3]).unwrap();
        assert_eq!(jpeg_of(&jpeg, [6, 8, 3]).unwrap(), jpeg);
        let pixels = JpegDecoder::new(ZCursor::new(&jpeg)).decode().unwrap();
        assert_eq!(pixels.len(), 6 * 8 * 3);
        assert!(pixels.iter().zip([250_u8, 20, 30].iter().cycle()).all(|(a, b)| a.abs_diff(*b) <= 3), "{pixels:?}");
    }

    #[test]
    fn files_that_are_no_such_image_are_refused() {
        let refused = |file: &[u8], part: &str| {
            let message = jpeg_of(file, [6, 8, 3]).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused(b"GIF89a", "neither PNG nor JPEG");
        refused(&[], "neither PNG nor JPEG");
        refused(&png(8, 6, [0; 3])[..40], "cannot be decoded");
        refused(&[0xff, 0xd8, 0xff], "cannot be decoded");
        refused(&png(6, 8, [0; 3]), "it is [8, 6, 3]; meta/info.json declares [6, 8, 3]");
    }
}
