//! A disk in memory that keeps no more than a disk has to: whole sectors, in any order, and of files and names
//! only what was synced.
//!
//! A power cut keeps an arbitrary part of what was not synced. A sync that failed may leave sectors in the cache
//! that no later sync writes, as Linux does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::spool::disk::{Disk, SECTOR_BYTES, SegmentNumber};

/// SplitMix64: the same numbers for the same seed, for ever.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Bytes that are as good as random.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    /// Yes in one of `n` cases.
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What goes wrong from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// Every operation that would change the disk fails.
    Broken,
    /// No segment can be made.
    Full,
    /// Nothing can be read either.
    Unreadable,
}

/// What goes wrong once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trap {
    /// One operation fails.
    Error,
    /// Everything fails, until [`SimDisk::power_cut`].
    PowerOff,
}

type Sector = [u8; SECTOR_BYTES];

#[derive(Debug, Clone, Default)]
struct SimFile {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What is on the disk for sure.
    durable: Vec<u8>,
    sized: bool,
    /// What was written since the last sync, oldest first: any of it may be on the disk.
    dirty: BTreeMap<usize, Vec<Sector>>,
    /// Sectors that a sync has made durable.
    synced: BTreeSet<usize>,
}

impl SimFile {
    fn of(bytes: Vec<u8>) -> Self {
        let synced = (0..bytes.len() / SECTOR_BYTES).collect();
        Self { seen: bytes.clone(), durable: bytes, sized: true, dirty: BTreeMap::new(), synced }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.seen[offset..offset + bytes.len()].copy_from_slice(bytes);
        for sector in offset / SECTOR_BYTES..(offset + bytes.len()).div_ceil(SECTOR_BYTES) {
            let now = sector_of(&self.seen, sector);
            self.dirty.entry(sector).or_default().push(now);
        }
    }

    fn settle(&mut self, sector: usize, bytes: &Sector) {
        self.durable[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        self.sized = true;
        for (sector, mut versions) in std::mem::take(&mut self.dirty) {
            let last = versions.pop().expect("a dirty sector was written");
            self.settle(sector, &last);
            self.synced.insert(sector);
        }
    }

    /// Keeps an arbitrary part of what was not synced.
    fn lose(&mut self, dice: &mut Dice) {
        // Nothing, everything, or some of it.
        let keep = dice.below(4);
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if keep == 0 || (keep > 1 && dice.one_in(2)) {
                continue;
            }
            let version = if dice.one_in(3) { dice.below(versions.len() as u64) as usize } else { versions.len() - 1 };
            self.settle(sector, &versions[version]);
        }
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> Sector {
    bytes[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].try_into().unwrap()
}

type Names = BTreeMap<SegmentNumber, u64>;

#[derive(Debug)]
struct State {
    files: BTreeMap<u64, SimFile>,
    names: Names,
    durable_names: Names,
    dice: Dice,
    fault: Fault,
    trap: Option<(u64, Trap)>,
    powered_off: bool,
    /// Bytes of all files that there can be.
    capacity: u64,
}

/// The disk; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

/// What a flipped bit was part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flipped {
    /// A sector in which nothing is written.
    Empty,
    /// A sector that no sync has covered.
    Loose,
    /// A sector that was synced.
    Durable,
}

impl SimDisk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            names: Names::new(),
            durable_names: Names::new(),
            dice: Dice(seed),
            fault: Fault::None,
            trap: None,
            powered_off: false,
            capacity: u64::MAX / 2,
        })))
    }

    /// A disk that holds these segments.
    pub(super) fn of(segments: BTreeMap<SegmentNumber, Vec<u8>>) -> Self {
        let disk = Self::new(0);
        let mut state = disk.state();
        for (file, (segment, bytes)) in (0..).zip(segments) {
            state.names.insert(segment, file);
            state.files.insert(file, SimFile::of(bytes));
        }
        state.durable_names = state.names.clone();
        drop(state);
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Everything that a power cut leaves for sure.
    pub(super) fn synced(&self) -> BTreeMap<SegmentNumber, Vec<u8>> {
        let state = self.state();
        state.durable_names.iter().map(|(&segment, file)| (segment, state.files[file].durable.clone())).collect()
    }

    /// Segments that exist now.
    pub(super) fn segments(&self) -> usize {
        self.state().names.len()
    }

    pub(super) fn set_fault(&self, fault: Fault) {
        self.state().fault = fault;
    }

    pub(super) fn set_trap(&self, after: u64, trap: Trap) {
        self.state().trap = Some((after, trap));
    }

    pub(super) fn set_free_bytes(&self, free_bytes: u64) {
        let mut state = self.state();
        state.capacity = state.used_bytes() + free_bytes;
    }

    pub(super) fn is_powered(&self) -> bool {
        !self.state().powered_off
    }

    /// Loses power and gets it back.
    pub(super) fn power_cut(&self) {
        let mut state = self.state();
        let state = &mut *state;
        (state.powered_off, state.trap) = (false, None);
        let touched: BTreeSet<SegmentNumber> = state.names.keys().chain(state.durable_names.keys()).copied().collect();
        for segment in touched {
            if state.names.get(&segment) != state.durable_names.get(&segment) && state.dice.one_in(2) {
                match state.names.get(&segment) {
                    Some(&file) => drop(state.durable_names.insert(segment, file)),
                    None => drop(state.durable_names.remove(&segment)),
                }
            }
        }
        state.names = state.durable_names.clone();
        state.files.retain(|file, _| state.names.values().any(|named| named == file));
        for file in state.files.values_mut() {
            file.lose(&mut state.dice);
            if !file.sized && state.dice.one_in(2) {
                file.durable.clear();
            }
            file.sized = true;
            file.seen = file.durable.clone();
        }
    }

    /// Flips one bit on the disk, mostly where something is written.
    pub(super) fn flip(&self) -> Option<(Flipped, SegmentNumber, usize)> {
        let mut state = self.state();
        let state = &mut *state;
        let count = state.names.len() as u64;
        let (&segment, number) = state.names.iter().nth(state.dice.below(count.max(1)) as usize)?;
        let file = state.files.get_mut(number)?;
        let written = file.durable.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let bytes = if state.dice.one_in(8) { file.durable.len() } else { written };
        if bytes == 0 {
            return None;
        }
        let at = state.dice.below(bytes as u64) as usize;
        let sector = at / SECTOR_BYTES;
        let flipped = if sector_of(&file.durable, sector).iter().all(|&byte| byte == 0) {
            Flipped::Empty
        } else if file.synced.contains(&sector) {
            Flipped::Durable
        } else {
            Flipped::Loose
        };
        file.durable[at] ^= 1 << state.dice.below(8);
        file.seen = file.durable.clone();
        Some((flipped, segment, at))
    }
}

impl State {
    /// Whether a change of the disk may happen.
    fn change(&mut self) -> io::Result<()> {
        if let Some((left, trap)) = self.trap {
            self.trap = left.checked_sub(1).map(|left| (left, trap));
            if left == 0 {
                self.powered_off = trap == Trap::PowerOff;
                return Err(io::Error::other("the disk failed once"));
            }
        }
        self.powered()?;
        match self.fault {
            Fault::Broken | Fault::Unreadable => Err(io::Error::other("the disk is broken")),
            Fault::None | Fault::Full => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| self.files[file].seen.len() as u64).sum()
    }

    fn powered(&self) -> io::Result<()> {
        match self.fault {
            _ if self.powered_off => Err(io::Error::other("the power is off")),
            Fault::Unreadable => Err(io::Error::other("nothing can be read")),
            Fault::None | Fault::Broken | Fault::Full => Ok(()),
        }
    }

    fn file(&mut self, segment: SegmentNumber) -> io::Result<&mut SimFile> {
        let file = self.names.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.files.get_mut(file).expect("a name has a file"))
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<SegmentNumber>> {
        let state = self.state();
        state.powered()?;
        Ok(state.names.keys().copied().collect())
    }

    fn create(&self, segment: SegmentNumber, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        if state.fault == Fault::Full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        assert!(!state.names.contains_key(&segment), "segment {segment} is made twice");
        let file = state.files.keys().last().map_or(0, |last| last + 1);
        let zeros = vec![0; bytes as usize];
        state.files.insert(file, SimFile { seen: zeros.clone(), durable: zeros, ..SimFile::default() });
        state.names.insert(segment, file);
        Ok(())
    }

    fn read_all(&self, segment: SegmentNumber) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        state.powered()?;
        Ok(state.file(segment)?.seen.clone())
    }

    fn read(&self, segment: SegmentNumber, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.powered()?;
        let bytes = state.file(segment)?.seen.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, segment: SegmentNumber, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let result = state.change();
        let mut part = bytes.len();
        if result.is_err() {
            // A write that fails has written some sectors.
            let end = (offset + state.dice.below(bytes.len() as u64 + 1)) as usize;
            part = (end / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(offset as usize);
        }
        state.file(segment)?.write(offset as usize, &bytes[..part]);
        result
    }

    fn sync(&self, segment: SegmentNumber) -> io::Result<()> {
        let mut state = self.state();
        let result = state.change();
        if result.is_ok() {
            state.file(segment)?.sync();
        } else if !state.powered_off {
            let mut dice = state.dice.clone();
            state.file(segment)?.lose(&mut dice);
            state.dice = dice;
        }
        result
    }

    fn remove(&self, segment: SegmentNumber) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        state.names.remove(&segment);
        Ok(())
    }

    fn quarantine(&self, segment: SegmentNumber) -> io::Result<()> {
        self.remove(segment)
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        Ok(state.capacity.saturating_sub(state.used_bytes()))
    }
}
