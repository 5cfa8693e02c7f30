//! The streams of one recording beside its steps: what a sample must be, and the row that it becomes.

use zunft_protocol::embodiment::{Embodiment, Encoding, Feature};
use zunft_protocol::limits::SAMPLE_BYTES_MAX;
use zunft_protocol::local::Sample;

use super::encoder::{Encoder, Picture};
use super::recording::{check_numbers, time_after};
use super::refusal::RequestError;
use crate::clock::RobotClock;
use crate::spool::{Recording, SampleSender};

/// How every JPEG begins.
const JPEG_BEGINS: [u8; 2] = [0xff, 0xd8];

/// The streams by their features' places in the embodiment.
pub(super) struct Samples {
    streams: Vec<Option<Stream>>,
    sender: Option<SampleSender>,
    /// Its thread runs from the first raw image to the recording's end.
    encoder: Option<Encoder>,
}

struct Stream {
    /// As the spool counts: the first after the steps is 1.
    number: u16,
    feature: Feature,
    last_monotonic_ns: Option<u64>,
    /// Whether the last image was raw, so that it may still be on its way through the encoder.
    raw: Option<bool>,
}

impl Samples {
    pub(super) fn of(embodiment: &Embodiment) -> Self {
        let mut number = 0;
        let streams = embodiment.features.iter().map(|feature| {
            feature.is_stream().then(|| {
                number += 1;
                Stream { number, feature: feature.clone(), last_monotonic_ns: None, raw: None }
            })
        });
        let streams = streams.collect();
        Self { streams, sender: None, encoder: None }
    }

    /// Checks a sample and hands it on.
    pub(super) fn take(
        &mut self,
        sample: &Sample<'_>,
        recording: &mut Recording,
        clock: &RobotClock,
    ) -> Result<(), RequestError> {
        let stream = self.streams.get_mut(sample.feature as usize).and_then(Option::as_mut);
        let stream = stream.ok_or(RequestError::NoStream { feature: sample.feature })?;
        let time = time_after(stream.last_monotonic_ns, sample.monotonic_ns)?;
        stream.check(sample)?;
        let sender = match &self.sender {
            Some(sender) => sender,
            None => self.sender.insert(recording.samples(|| clock.episode_begins(sample.monotonic_ns))?),
        };
        if sample.raw {
            let encoder = self.encoder.get_or_insert_with(|| Encoder::start(sender.clone()));
            let [height, width, channels] = stream.feature.shape[..] else {
                return Err(stream.bad("its embodiment gives no height, width and channels"));
            };
            let (number, pixels) = (stream.number, sample.bytes.to_vec());
            encoder.offer(Picture { stream: number, monotonic_ns: time, height, width, channels, pixels });
        } else {
            let mut row = Vec::with_capacity(8 + sample.bytes.len());
            row.extend_from_slice(&time.to_le_bytes());
            row.extend_from_slice(sample.bytes);
            let key_frame = sample.key_frame || stream.feature.encoding != Some(Encoding::H264);
            sender.send(stream.number, key_frame, row)?;
        }
        stream.raw = Some(sample.raw);
        stream.last_monotonic_ns = Some(sample.monotonic_ns);
        Ok(())
    }

    /// Lets the encoder finish what it has; returns how many images it had to leave out.
    pub(super) fn finish(self) -> u64 {
        self.encoder.map_or(0, Encoder::finish)
    }
}

impl Stream {
    fn bad(&self, reason: &'static str) -> RequestError {
        RequestError::BadImage { feature: self.feature.name.clone(), reason }
    }

    fn check(&self, sample: &Sample<'_>) -> Result<(), RequestError> {
        let Feature { name, encoding, .. } = &self.feature;
        let found = sample.bytes.len();
        let size = |expected: String| Err(RequestError::WrongSampleSize { feature: name.clone(), found, expected });
        match encoding {
            None if sample.raw => Err(self.bad("only images can be raw")),
            None if found != self.feature.bytes() => size(self.feature.bytes().to_string()),
            None => check_numbers(&self.feature, sample.bytes),
            // One that is still being encoded would come after those that are not.
            Some(_) if self.raw.is_some_and(|raw| raw != sample.raw) => {
                Err(self.bad("a camera gives all images of a recording raw, or none"))
            }
            Some(Encoding::H264) if sample.raw => Err(self.bad("raw images become JPEG; this camera is H.264")),
            Some(Encoding::Jpeg) if sample.raw => {
                if found == self.feature.values() {
                    Ok(())
                } else {
                    size(self.feature.values().to_string())
                }
            }
            Some(_) if found == 0 || found > SAMPLE_BYTES_MAX => size(format!("1 to {SAMPLE_BYTES_MAX}")),
            Some(Encoding::Jpeg) if !sample.bytes.starts_with(&JPEG_BEGINS) => Err(self.bad("it is no JPEG")),
            Some(_) => Ok(()),
        }
    }
}
