//! Samples of streams of their own: what belongs to which, and how they are numbered. It knows nothing of sockets.

use zunft_protocol::embodiment::{Dtype, Embodiment, Encoding};
use zunft_protocol::local::Sample;

use crate::error::StepError;
use crate::values::Values;

/// Set in the number of a SAMPLE; below follow 8 bits for the feature and 22 that count its samples.
///
/// A STEP has the upper of the two bits only.
pub(crate) const SAMPLE_REQUEST: u32 = 3 << 30;

/// Bits that count a stream's samples.
const COUNT_BITS: u32 = 22;

const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// What one sample holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Data<'a> {
    /// For a feature of numbers.
    Values(Values<'a>),
    /// A whole JPEG file, for a camera with that encoding.
    Jpeg(&'a [u8]),
    /// Raw pixels, `[height, width, channels]` in row-major order, for a camera whose images are stored as JPEG.
    Raw(&'a [u8]),
    /// One access unit, for a camera with that encoding.
    H264 {
        /// As the camera gave it.
        access_unit: &'a [u8],
        /// Whether it can be decoded without those before it.
        key_frame: bool,
    },
}

impl Data<'_> {
    /// Appends the body of SAMPLE.
    pub(crate) fn encode(&self, monotonic_ns: u64, feature: u32, out: &mut Vec<u8>) {
        let (key_frame, raw, bytes) = match *self {
            Self::Values(_) => (false, false, &[][..]),
            Self::Jpeg(bytes) => (true, false, bytes),
            Self::Raw(bytes) => (true, true, bytes),
            Self::H264 { access_unit, key_frame } => (key_frame, false, access_unit),
        };
        Sample { monotonic_ns, feature, key_frame, raw, bytes }.encode(out);
        if let Self::Values(values) = self {
            values.encode(out);
        }
    }
}

#[derive(Debug)]
struct Stream {
    name: String,
    /// Its place in the embodiment.
    feature: u32,
    encoding: Option<Encoding>,
    dtype: Dtype,
    values: usize,
    sent: u32,
}

/// The streams of an open recording.
#[derive(Debug)]
pub(crate) struct Streams(Vec<Stream>);

impl Streams {
    pub(crate) fn of(embodiment: &Embodiment) -> Self {
        let features = (0..).zip(&embodiment.features).filter(|(_, feature)| feature.is_stream());
        let streams = features.map(|(place, feature)| Stream {
            name: feature.name.clone(),
            feature: place,
            encoding: feature.encoding,
            dtype: feature.dtype,
            values: feature.values(),
            sent: 0,
        });
        Self(streams.collect())
    }

    /// The number of the request that carries this sample, and its feature's place; refused where it does not fit.
    pub(crate) fn next(&mut self, name: &str, data: &Data<'_>) -> Result<(u32, u32), StepError> {
        let Some(stream) = self.0.iter_mut().find(|stream| stream.name == name) else {
            let known: Vec<&str> = self.0.iter().map(|stream| stream.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(StepError::NoStream { stream: name.to_owned(), known });
        };
        stream.check(data)?;
        let request = SAMPLE_REQUEST | stream.feature << COUNT_BITS | stream.sent;
        stream.sent = (stream.sent + 1) & COUNT_MASK;
        Ok((request, stream.feature))
    }

    /// Which sample of which stream a request was; `None` for a step.
    pub(crate) fn of_request(&self, request: u32) -> Option<(u64, String)> {
        if request & SAMPLE_REQUEST != SAMPLE_REQUEST {
            return None;
        }
        let feature = (request & !SAMPLE_REQUEST) >> COUNT_BITS;
        let stream = self.0.iter().find(|stream| stream.feature == feature)?;
        Some((u64::from(request & COUNT_MASK), stream.name.clone()))
    }
}

impl Stream {
    fn check(&self, data: &Data<'_>) -> Result<(), StepError> {
        let expect = |expected| Err(StepError::Sample { stream: self.name.clone(), expected });
        match (self.encoding, data) {
            (None, Data::Values(values)) => {
                let (found, found_dtype) = (values.len(), values.dtype());
                if (found, found_dtype) == (self.values, self.dtype) {
                    return Ok(());
                }
                let (feature, expected, dtype) = (self.name.clone(), self.values, self.dtype);
                Err(StepError::Feature { feature, expected, dtype, found, found_dtype })
            }
            (Some(Encoding::Jpeg), Data::Raw(pixels)) if pixels.len() != self.values => {
                expect("height x width x channels bytes of pixels")
            }
            (Some(Encoding::Jpeg), Data::Jpeg(_) | Data::Raw(_)) | (Some(Encoding::H264), Data::H264 { .. }) => Ok(()),
            (None, _) => expect("values"),
            (Some(Encoding::Jpeg), _) => expect("a JPEG or raw pixels"),
            (Some(Encoding::H264), _) => expect("an access unit of H.264"),
        }
    }
}
