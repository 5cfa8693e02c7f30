//! From a JPEG file to rows of a batch.

use std::panic::{AssertUnwindSafe, catch_unwind};

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zunft_protocol::ids::EpisodeId;

use super::blocks::Found;
use super::{ImageWindows, LoaderError, Pixels};

/// A camera of the embodiment.
#[derive(Debug)]
pub(super) struct Camera {
    pub(super) name: String,
    pub(super) size: ImageSize,
}

/// What the embodiment says of a camera's images.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageSize {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl ImageSize {
    /// Values of one image.
    pub(super) fn values(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Why a file gave no pixels.
enum Fault {
    Size([u32; 2]),
    File(DecodeErrors),
}

impl Camera {
    /// Decodes an image into `pixels`, `[height, width, channels]`.
    pub(super) fn decode(&self, episode: EpisodeId, found: &Found, pixels: &mut Vec<u8>) -> Result<(), LoaderError> {
        pixels.resize(self.size.values(), 0);
        // The decoder is dropped after a panic, so nobody sees a half-made state.
        let decoded = catch_unwind(AssertUnwindSafe(|| decode(found.bytes(), self.size, pixels)))
            .unwrap_or(Err(Fault::File(DecodeErrors::FormatStatic("its contents contradict each other"))));
        let (camera, time_ns) = (self.name.clone(), found.time_ns());
        decoded.map_err(|fault| match fault {
            Fault::Size(found) => {
                let expected = [self.size.width as u32, self.size.height as u32];
                LoaderError::ImageSize { episode, camera, time_ns, found, expected }
            }
            Fault::File(source) => LoaderError::Jpeg { episode, camera, time_ns, source: Box::new(source) },
        })
    }
}

fn decode(file: &[u8], size: ImageSize, pixels: &mut [u8]) -> Result<(), Fault> {
    let colors = if size.channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    // Strict: the rest of a file that was cut off would be grey, and nobody would know.
    let options = DecoderOptions::default().set_strict_mode(true).jpeg_set_out_colorspace(colors);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(Fault::File)?;
    let info = decoder.info().ok_or(Fault::File(DecodeErrors::FormatStatic("it has no header")))?;
    // Before any memory is taken for the pixels.
    if (usize::from(info.width), usize::from(info.height)) != (size.width, size.height) {
        return Err(Fault::Size([u32::from(info.width), u32::from(info.height)]));
    }
    if decoder.output_buffer_size() != Some(pixels.len()) {
        return Err(Fault::File(DecodeErrors::FormatStatic("its colours are not those of the camera")));
    }
    decoder.decode_into(pixels).map_err(Fault::File)
}

impl ImageWindows {
    /// Appends an image, `[height, width, channels]`, as `[channels, height, width]`.
    pub(super) fn push(&mut self, size: &ImageSize, pixels: &[u8]) {
        for channel in 0..size.channels {
            let values = pixels.chunks_exact(size.channels).map(|pixel| pixel[channel]);
            match &mut self.pixels {
                Pixels::U8(to) => to.extend(values),
                Pixels::F32(to) => to.extend(values.map(|value| f32::from(value) / 255.0)),
            }
        }
    }
}
