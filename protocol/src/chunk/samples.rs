//! A chunk of encoded images: their times and lengths as columns, and the images one after another, as they are.
//!
//! ```text
//! 0   header     as every chunk's: codec 2 for JPEG, 3 for H.264; raw_bytes is the size of the rest
//!                flags bit 0: it begins inside a group of pictures, and needs the chunks before it
//! 16  times      i64 x samples, the robot's monotonic nanoseconds
//! ..  lengths    u32 x samples
//! ..  key frames u8 x samples: 1 where an image needs none before it
//! ..  images     one after another
//! ```
//! All integers are little-endian. JPEG and H.264 are compressed already: zstd would cost time and save nothing.
//!
//! A chunk of H.264 ends where a group of pictures ends, so that each can be decoded alone. Only a group that is
//! larger than a chunk is split, and the chunks that go on with it say so.

use super::{ChunkError, HEADER_BYTES, Header, split};
use crate::embodiment::Encoding;
use crate::limits::CHUNK_BYTES_MAX;

/// What a sample takes beside its bytes: time, length, key frame.
pub const SAMPLE_OVERHEAD_BYTES: usize = 8 + 4 + 1;

const CODEC_JPEG: u8 = 2;
const CODEC_H264: u8 = 3;

/// Flag: the first image needs some of an earlier chunk.
const CONTINUES: u8 = 1;

/// One encoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// When it was taken, on the robot's monotonic clock.
    pub monotonic_ns: i64,
    /// Whether it needs none before it. Every JPEG is one.
    pub key_frame: bool,
    /// As the control program gave it.
    pub bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    monotonic_ns: i64,
    bytes: u32,
    key_frame: bool,
}

/// Collects encoded images until they make a chunk.
#[derive(Debug)]
pub struct SampleChunkBuilder {
    encoding: Encoding,
    stored_bytes_max: usize,
    entries: Vec<Entry>,
    images: Vec<u8>,
}

impl SampleChunkBuilder {
    /// An empty chunk of at most [`CHUNK_BYTES_MAX`] stored bytes.
    pub fn new(encoding: Encoding) -> Self {
        Self::with_bytes_max(encoding, CHUNK_BYTES_MAX)
    }

    /// An empty chunk of at most `stored_bytes_max`, itself at most [`CHUNK_BYTES_MAX`].
    pub fn with_bytes_max(encoding: Encoding, stored_bytes_max: usize) -> Self {
        let stored_bytes_max = stored_bytes_max.min(CHUNK_BYTES_MAX);
        Self { encoding, stored_bytes_max, entries: Vec::new(), images: Vec::new() }
    }

    /// Samples so far.
    pub fn samples(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Bytes that it would have if it were cut now.
    pub fn stored_bytes(&self) -> usize {
        HEADER_BYTES + self.entries.len() * SAMPLE_OVERHEAD_BYTES + self.images.len()
    }

    /// Memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.images.capacity()
    }

    /// Cuts a chunk if an image of `bytes` no longer fits: call before every [`Self::push`], until it is `None`.
    ///
    /// H.264 is cut before the last key frame where the chunk holds one that is not its first, and images from there
    /// on stay for the next chunk.
    pub fn cut_before(&mut self, key_frame: bool, bytes: usize) -> Option<(Vec<u8>, u32)> {
        if self.stored_bytes() + SAMPLE_OVERHEAD_BYTES + bytes <= self.stored_bytes_max {
            return None;
        }
        let last_key = self.entries.iter().rposition(|entry| entry.key_frame).filter(|&at| at > 0);
        let samples = match (self.encoding, last_key) {
            (Encoding::H264, Some(last_key)) if !key_frame => last_key as u32,
            (Encoding::Jpeg | Encoding::H264, _) => self.samples(),
        };
        self.take(samples)
    }

    /// Adds an image; of JPEG every one is a key frame.
    pub fn push(&mut self, sample: &Sample<'_>) {
        let key_frame = sample.key_frame || self.encoding == Encoding::Jpeg;
        let Sample { monotonic_ns, bytes, .. } = *sample;
        if self.images.capacity() == 0 {
            // At once: growing by halves would take up to twice as much, and pages without images take nothing.
            self.images.reserve_exact(self.stored_bytes_max);
        }
        self.entries.push(Entry { monotonic_ns, bytes: bytes.len() as u32, key_frame });
        self.images.extend_from_slice(bytes);
    }

    /// The stored bytes of a chunk of all images, and their number. `None` without any.
    pub fn finish(&mut self) -> Option<(Vec<u8>, u32)> {
        self.take(self.samples())
    }

    /// The stored bytes of a chunk of the first `samples` images; the others stay. `None` where there are fewer, or
    /// for none.
    pub fn take(&mut self, samples: u32) -> Option<(Vec<u8>, u32)> {
        let entries = self.entries.get(..samples as usize).filter(|entries| !entries.is_empty())?;
        let image_bytes: usize = entries.iter().map(|entry| entry.bytes as usize).sum();
        let raw_bytes = entries.len() * SAMPLE_OVERHEAD_BYTES + image_bytes;
        let codec = match self.encoding {
            Encoding::Jpeg => CODEC_JPEG,
            Encoding::H264 => CODEC_H264,
        };
        let flags = if entries[0].key_frame { 0 } else { CONTINUES };
        let mut stored = Vec::with_capacity(HEADER_BYTES + raw_bytes);
        Header { codec, flags, steps: samples, raw_bytes: raw_bytes as u32 }.write(&mut stored);
        entries.iter().for_each(|entry| stored.extend_from_slice(&entry.monotonic_ns.to_le_bytes()));
        entries.iter().for_each(|entry| stored.extend_from_slice(&entry.bytes.to_le_bytes()));
        stored.extend(entries.iter().map(|entry| u8::from(entry.key_frame)));
        stored.extend_from_slice(&self.images[..image_bytes]);
        self.entries.drain(..samples as usize);
        self.images.drain(..image_bytes);
        Some((stored, samples))
    }
}

/// A chunk of encoded images, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleChunk<'a> {
    encoding: Encoding,
    samples: Vec<Sample<'a>>,
}

impl<'a> SampleChunk<'a> {
    /// Reads stored bytes of a stream of this encoding.
    pub fn decode(stored: &'a [u8], encoding: Encoding) -> Result<Self, ChunkError> {
        let (header, payload) = split(stored)?;
        let found = match header.codec {
            CODEC_JPEG => Some(Encoding::Jpeg),
            CODEC_H264 => Some(Encoding::H264),
            _ => None,
        };
        if found != Some(encoding) {
            return Err(ChunkError::Codec { codec: header.codec });
        }
        if header.raw_bytes as usize != payload.len() {
            return Err(ChunkError::Payload);
        }
        let damaged = ChunkError::Samples { samples: header.steps };
        let samples = read(payload, header.steps as usize).ok_or_else(|| damaged.clone())?;
        let continues = samples.first().is_none_or(|first| !first.key_frame);
        let odd_jpeg = encoding == Encoding::Jpeg && samples.iter().any(|sample| !sample.key_frame);
        if header.flags != u8::from(continues) * CONTINUES || odd_jpeg {
            return Err(damaged);
        }
        Ok(Self { encoding, samples })
    }

    /// How they are encoded.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The images in their order.
    pub fn samples(&self) -> &[Sample<'a>] {
        &self.samples
    }

    /// Whether its first images need some of an earlier chunk.
    pub fn continues(&self) -> bool {
        self.samples.first().is_some_and(|first| !first.key_frame)
    }
}

/// The images of a payload that holds so many; `None` where its columns say otherwise.
fn read(payload: &[u8], count: usize) -> Option<Vec<Sample<'_>>> {
    // Each image has at least one byte: memory is taken only for what the payload can hold.
    if count == 0 || count.checked_mul(SAMPLE_OVERHEAD_BYTES + 1)? > payload.len() {
        return None;
    }
    let (times, rest) = payload.split_at_checked(8 * count)?;
    let (lengths, rest) = rest.split_at_checked(4 * count)?;
    let (keys, mut images) = rest.split_at_checked(count)?;
    let mut samples = Vec::with_capacity(count);
    for ((time, length), &key) in times.chunks_exact(8).zip(lengths.chunks_exact(4)).zip(keys) {
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let (bytes, rest) = images.split_at_checked(length).filter(|_| length > 0 && key <= 1)?;
        let monotonic_ns = i64::from_le_bytes(time.try_into().ok()?);
        samples.push(Sample { monotonic_ns, key_frame: key == 1, bytes });
        images = rest;
    }
    images.is_empty().then_some(samples)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(monotonic_ns: i64, key_frame: bool, bytes: &[u8]) -> Sample<'_> {
        Sample { monotonic_ns, key_frame, bytes }
    }

    #[test]
    fn the_bytes_are_frozen() {
        let mut builder = SampleChunkBuilder::new(Encoding::H264);
        builder.push(&image(258, false, &[7, 8, 9]));
        builder.push(&image(-1, true, &[5]));
        let (stored, samples) = builder.finish().unwrap();
        assert_eq!(samples, 2);
        assert_eq!(
            stored,
            [
                b'Z', b'N', b'C', b'1', // magic
                3, 1, 0, 0, // codec, flags: begins inside a group of pictures
                2, 0, 0, 0, // samples
                30, 0, 0, 0, // raw_bytes
                2, 1, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, // times
                3, 0, 0, 0, 1, 0, 0, 0, // lengths
                0, 1, // key frames
                7, 8, 9, 5, // images
            ]
        );
        let chunk = SampleChunk::decode(&stored, Encoding::H264).unwrap();
        assert_eq!(chunk.samples(), [image(258, false, &[7, 8, 9]), image(-1, true, &[5])]);
        assert!(chunk.continues());
        assert!(builder.finish().is_none(), "the builder is empty again");
    }

    #[test]
    fn every_jpeg_is_a_key_frame() {
        let mut builder = SampleChunkBuilder::new(Encoding::Jpeg);
        builder.push(&image(1, false, &[1]));
        let (stored, _) = builder.finish().unwrap();
        assert_eq!(stored[4..6], [2, 0]);
        assert!(SampleChunk::decode(&stored, Encoding::Jpeg).unwrap().samples()[0].key_frame);
        assert_eq!(SampleChunk::decode(&stored, Encoding::H264), Err(ChunkError::Codec { codec: 2 }));
    }

    /// Cuts a stream of `frames` (key frame, bytes) into chunks of at most `bytes_max`, and reads them back.
    fn cut(encoding: Encoding, bytes_max: usize, frames: &[(bool, usize)]) -> Vec<(Vec<(bool, usize)>, bool)> {
        let mut builder = SampleChunkBuilder::with_bytes_max(encoding, bytes_max);
        let mut stored = Vec::new();
        for (time, &(key_frame, bytes)) in (0_i64..).zip(frames) {
            while let Some((chunk, _)) = builder.cut_before(key_frame, bytes) {
                stored.push(chunk);
            }
            builder.push(&image(time, key_frame, &vec![time as u8; bytes]));
            assert!(builder.stored_bytes() <= bytes_max, "a chunk outgrew its bound");
        }
        stored.extend(builder.finish().map(|(chunk, _)| chunk));
        let mut time = 0;
        let chunks = stored.iter().map(|stored| {
            assert!(stored.len() <= bytes_max);
            let chunk = SampleChunk::decode(stored, encoding).unwrap();
            for sample in chunk.samples() {
                assert_eq!(sample.monotonic_ns, time, "every image is there, once and in order");
                assert!(sample.bytes.iter().all(|&byte| byte == time as u8));
                time += 1;
            }
            let frames = chunk.samples().iter().map(|sample| (sample.key_frame, sample.bytes.len()));
            (frames.collect(), chunk.continues())
        });
        let chunks = chunks.collect();
        assert_eq!(time as usize, frames.len());
        chunks
    }

    #[test]
    fn video_is_cut_at_key_frames() {
        // Room for five images of 100 bytes.
        let bytes_max = HEADER_BYTES + 5 * (100 + SAMPLE_OVERHEAD_BYTES);
        let (key, more) = ((true, 100), (false, 100));
        let chunks = cut(Encoding::H264, bytes_max, &[key, more, more, key, more, more, key, more, key]);
        let expected =
            vec![(vec![key, more, more], false), (vec![key, more, more, key, more], false), (vec![key], false)];
        assert_eq!(chunks, expected);
    }

    #[test]
    fn a_group_of_pictures_larger_than_a_chunk_is_split_and_says_so() {
        let bytes_max = HEADER_BYTES + 3 * (100 + SAMPLE_OVERHEAD_BYTES);
        let (key, more) = ((true, 100), (false, 100));
        let chunks = cut(Encoding::H264, bytes_max, &[key, more, more, more, more, key, more]);
        let expected = vec![(vec![key, more, more], false), (vec![more, more], true), (vec![key, more], false)];
        assert_eq!(chunks, expected);
    }

    #[test]
    fn contradictory_chunks_are_refused() {
        let mut builder = SampleChunkBuilder::new(Encoding::H264);
        builder.push(&image(1, true, &[7, 8]));
        builder.push(&image(2, false, &[9]));
        let (stored, _) = builder.finish().unwrap();
        let refused = |change: fn(&mut Vec<u8>), expected: ChunkError| {
            let mut changed = stored.clone();
            change(&mut changed);
            assert_eq!(SampleChunk::decode(&changed, Encoding::H264), Err(expected));
        };
        let samples = |samples| ChunkError::Samples { samples };
        refused(|b| b.truncate(15), ChunkError::Header);
        refused(|b| b[6] = 1, ChunkError::Header);
        refused(|b| b[4] = 1, ChunkError::Codec { codec: 1 });
        refused(|b| b[5] = 1, samples(2));
        refused(|b| b[5] = 2, samples(2));
        refused(|b| b[8] = 0, samples(0));
        refused(|b| b[8..12].fill(0xff), samples(u32::MAX));
        refused(|b| b.push(0), ChunkError::Payload);
        refused(|b| b[HEADER_BYTES + 16] = 1, samples(2));
        refused(|b| b[HEADER_BYTES + 20] = 0, samples(2));
        refused(|b| b[HEADER_BYTES + 24] = 2, samples(2));
        refused(|b| b.resize(CHUNK_BYTES_MAX + 1, 0), ChunkError::TooLarge { bytes: CHUNK_BYTES_MAX + 1 });
    }

    proptest! {
        #[test]
        fn every_image_comes_back_and_chunks_begin_at_key_frames_where_they_can(
            frames in proptest::collection::vec((proptest::bool::weighted(0.2), 1..200_usize), 1..200),
        ) {
            let bytes_max = 1024;
            let chunks = cut(Encoding::H264, bytes_max, &frames);
            for pair in chunks.windows(2) {
                let (before, (_, continues)) = (&pair[0].0, &pair[1]);
                // Only a group that began with the chunk before, or earlier, may go on here.
                prop_assert!(!continues || before[1..].iter().all(|(key_frame, _)| !key_frame));
            }
            prop_assert_eq!(cut(Encoding::Jpeg, bytes_max, &frames).iter().filter(|(_, continues)| *continues).count(), 0);
        }
    }
}
